// Sets data-theme to light or dark, as chosen or as the system says: before the first paint, and whenever either changes.
"use strict";

(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = "system";
  try {
    chosen = localStorage.getItem("sglang.theme") ?? chosen;
  } catch {
    // the browser gives pages no storage
  }
  const apply = () => {
    document.documentElement.dataset.theme = chosen === "dark" || (chosen !== "light" && system.matches) ? "dark" : "light";
  };
  system.addEventListener("change", apply);
  addEventListener("sglang-theme", (event) => {
    chosen = event.detail;
    apply();
  });
  apply();
})();
