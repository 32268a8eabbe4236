// Sets data-theme to light or dark, as chosen or as the system says: before the first paint, and whenever either changes.
"use strict";

(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const chosen = localStorage.getItem("sglang.theme") ?? (system.matches ? "dark" : "light");
    document.documentElement.dataset.theme = chosen === "dark" ? "dark" : "light";
  };
  system.addEventListener("change", apply);
  addEventListener("sglang-theme", apply);
  apply();
})();
