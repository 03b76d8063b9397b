// What the views are drawn with. Texts come from workflows and are only ever set as textContent.

export const COLORS = {
  good: "#3fb37f",
  bad: "#e05555",
  quiet: "#8b8b8b",
  frame: "#2a2c33",
  ground: "#17181c",
  text: "#d6d6d6",
  key: "#4c9be8",
};

export function tag(name, style = {}, text = "") {
  const element = document.createElement(name);
  Object.assign(element.style, style);
  element.textContent = text;
  return element;
}

export function button(text, title, press) {
  const element = tag("button", {
    padding: "4px 12px", borderRadius: "5px", border: "1px solid #3a3d46", background: "#24262d",
    color: COLORS.text, font: "inherit", cursor: "pointer", flex: "none",
  }, text);
  element.title = title;
  element.addEventListener("click", press);
  return element;
}

const MARGIN = 10; // the canvas takes it off a widget above and below

// A view's frame, at least `height` high: a line of text above, the stage, buttons below; keys are its own while the mouse is over it.
export function panel(className, height, takeKey) {
  const element = tag("div", {
    width: "100%", height: "100%", minHeight: `${height - 2 * MARGIN}px`, boxSizing: "border-box",
    padding: "8px", overflow: "hidden",
    display: "flex", flexDirection: "column", gap: "6px", borderRadius: "6px", background: COLORS.ground,
    color: COLORS.text, font: "13px/1.35 sans-serif", userSelect: "none", outline: "none",
  });
  element.className = className;
  element.tabIndex = 0;
  const head = tag("div", { flex: "none", minHeight: "18px" });
  head.className = `${className}-status`;
  const stage = tag("div", { flex: "1 1 0", minHeight: "0", position: "relative" });
  const foot = tag("div", { flex: "none", display: "flex", gap: "6px", alignItems: "center" });
  element.append(head, stage, foot);
  element.addEventListener("mouseenter", () => {
    const typing = ["INPUT", "TEXTAREA"].includes(document.activeElement?.tagName);
    if (!typing) element.focus({ preventScroll: true });
  });
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !takeKey(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
  });
  // the canvas under the view is not to move or zoom with what happens in it
  for (const kind of ["pointerdown", "pointerup", "click", "dblclick"])
    element.addEventListener(kind, (event) => event.stopPropagation());
  return { element, head, stage, foot };
}

// Shows a view over the whole page and puts it back.
export class Enlarged {
  constructor(element) {
    this.element = element;
    this.place = null;
  }

  toggle() {
    if (this.place) return this.close();
    this.place = tag("div");
    this.element.replaceWith(this.place);
    this.cover = tag("div", {
      position: "fixed", inset: "0", zIndex: "9999", padding: "24px", background: "rgba(0, 0, 0, 0.85)",
      boxSizing: "border-box",
    });
    this.cover.className = "rlr-enlarged";
    this.cover.append(this.element);
    document.body.append(this.cover);
    this.element.focus({ preventScroll: true });
  }

  close() {
    if (!this.place) return;
    this.place.replaceWith(this.element);
    this.cover.remove();
    this.place = null;
  }
}
