// Light or dark: as the system says, until somebody chooses.

const dark = window.matchMedia("(prefers-color-scheme: dark)");

export class Theme {
  constructor() {
    this.#apply();
  }

  #apply() {
    const chosen = localStorage.getItem("theme");
    if (chosen) document.documentElement.dataset.theme = chosen;
  }

  toggle() {
    const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
    localStorage.setItem("theme", now === "dark" ? "light" : "dark");
    this.#apply();
  }
}
