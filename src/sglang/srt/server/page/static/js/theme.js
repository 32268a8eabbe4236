// Light, dark, or what the system says. Runs before the first paint.
"use strict";

(() => {
  const chosen = localStorage.getItem("sglang.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
