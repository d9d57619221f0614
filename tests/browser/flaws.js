// A small part of what axe checks: every text against what is painted behind it, every control by its name, every
// reference to another element, every role within what it needs. Gives a list of sentences.
() => {
  const CONTROLS = "button, a[href], input, select, textarea, summary, dialog, "
    + "[role=button], [role=tab], [role=option], [role=combobox], [role=dialog]";
  const flaws = [];
  const number = (text) => {
    const parts = text.match(/[\d.]+/g).map(Number);
    // Chromium gives color-mix() as `color(srgb r g b / a)`.
    const scale = text.startsWith("color(") ? 255 : 1;
    return [parts[0] * scale, parts[1] * scale, parts[2] * scale, parts[3] ?? 1];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const behind = (element) => {
    const chain = [];
    for (let step = element; step; step = step.parentElement) chain.push(step);
    const paint = (color, step) => over(number(getComputedStyle(step).backgroundColor), color);
    return chain.reverse().reduce(paint, [255, 255, 255, 1]);
  };
  const visible = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })
    && element.getClientRects().length > 0;
  const top = document.querySelector("dialog[open]") ?? document.body;
  for (const element of top.querySelectorAll("*")) {
    if (!visible(element) || element.closest(".unseen, .skip-link, :disabled")) continue;
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    // Marks stand for what prints nothing and are no text; an aria-hidden picture is decoration.
    const painted = own && !element.matches("i, [aria-hidden=true], [aria-hidden=true] *");
    if (painted) {
      const style = getComputedStyle(element);
      const back = behind(element);
      let alpha = 1;
      for (let step = element; step; step = step.parentElement) alpha *= Number(getComputedStyle(step).opacity);
      const ink = number(style.color);
      const found = ratio(over([ink[0], ink[1], ink[2], ink[3] * alpha], back), back);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      const what = `${element.className || element.tagName} "${element.textContent.slice(0, 30)}"`;
      if (found < (large ? 3 : 4.5)) flaws.push(`contrast ${found.toFixed(2)}: ${what}`);
    }
    if (element.matches(CONTROLS)) {
      const ids = (element.getAttribute("aria-labelledby") ?? "").split(" ");
      const by = ids.map((id) => document.getElementById(id)?.textContent ?? "").join("");
      const labels = [...(element.labels ?? [])].map((label) => label.textContent).join("");
      const isBox = element.matches("input, select, textarea, dialog, [role=dialog]");
      const name = element.getAttribute("aria-label") ?? (by || labels || (isBox ? "" : element.textContent));
      if (!name.trim()) flaws.push(`no name: ${element.outerHTML.slice(0, 100)}`);
    }
    for (const reference of ["aria-controls", "aria-labelledby", "aria-activedescendant"]) {
      const id = element.getAttribute(reference);
      if (id && !document.getElementById(id)) flaws.push(`${reference} leads nowhere: ${id}`);
    }
    const parent = { option: "[role=listbox]", tab: "[role=tablist]" }[element.getAttribute("role")];
    if (parent && !element.closest(parent)) flaws.push(`${element.getAttribute("role")} outside of ${parent}`);
    if (element.tabIndex > 0) flaws.push(`tab order forced: ${element.id}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at))) flaws.push(`id twice: ${id}`);
  return flaws;
}
