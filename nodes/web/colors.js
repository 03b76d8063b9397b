// Colors of the pack's own sockets and links, in the canvas and in Vue nodes; a palette's own colors win.

import { app } from "../../scripts/app.js";

const COLORS = {
  RLR_MODEL: "#b39ddb",
  RLR_PROMPTS: "#ffd180",
  RLR_REWARD: "#66bb9a",
  RLR_METHOD: "#f48fb1",
  RLR_SETTINGS: "#90a4ae",
};

// A palette that is loaded empties the colors of types that it does not know.
function keep(colors, type) {
  let color = colors[type] || COLORS[type];
  Object.defineProperty(colors, type, {
    configurable: true,
    enumerable: true,
    get: () => color,
    set: (other) => (color = other || COLORS[type]),
  });
}

app.registerExtension({
  name: "RLR.Colors",

  setup() {
    for (const colors of [app.canvas?.default_connection_color_byType, globalThis.LGraphCanvas?.link_type_colors])
      if (colors) for (const type of Object.keys(COLORS)) keep(colors, type);
    const style = document.createElement("style"); // what a palette sets stands on the element and comes first
    const rules = Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`);
    style.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(style);
    app.canvas?.setDirty?.(true, true);
  },
});
