// One live view: a line of status, a chart of reward, judge and KL, and a strip of samples through time.
//
// Texts come from workflows and are only ever set as textContent.

export const HEIGHT = 288; // of the widget; the canvas takes MARGIN off it above and below
const MARGIN = 10;
const WIDE = 400; // of the chart's own coordinates; it is scaled to the node
const HIGH = 130;
const LEFT = 6;
const RIGHT = 6;
const SERIES = [
  { key: "kl", label: "KL", color: "#3fb37f", width: 1.2 },
  { key: "reward", label: "reward", color: "#4c9be8", width: 1.8 },
  { key: "judge", label: "judge", color: "#e8804c", width: 1.8, dots: true },
];
const PICTURE = /^data:image\/(jpeg|webp);base64,/; // a still, or a video's frames, which play by themselves
const STATES = {
  running: "#4c9be8",
  finished: "#3fb37f",
  cancelled: "#d9a93a",
  failed: "#e05555",
  idle: "#777777",
};

export class View {
  constructor() {
    this.element = tag("div", {
      width: "100%", height: "100%", minHeight: `${HEIGHT - 2 * MARGIN}px`,
      maxHeight: `${HEIGHT}px`, boxSizing: "border-box", padding: "6px 8px", overflow: "hidden",
      display: "flex", flexDirection: "column", gap: "4px", borderRadius: "6px", background: "#17181c",
      color: "#d6d6d6", font: "12px/1.35 sans-serif", userSelect: "none",
    });
    this.element.className = "rlr-live-view";
    const head = tag("div", { display: "flex", alignItems: "center", gap: "6px", flex: "none" });
    this.light = tag("span", { width: "8px", height: "8px", borderRadius: "50%", flex: "none" });
    this.status = tag("span", { // three lines of a warning or an error at most; the rest is in its title
      overflow: "hidden", display: "-webkit-box", webkitBoxOrient: "vertical", webkitLineClamp: "3",
    });
    this.status.className = "rlr-status";
    this.clock = tag("span", { marginLeft: "auto", color: "#8b8b8b", whiteSpace: "nowrap", flex: "none" });
    head.append(this.light, this.status, this.clock);
    this.legend = tag("div", { display: "flex", gap: "12px", flex: "none", height: "16px" });
    this.chart = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none" });
    Object.assign(this.chart.style, { width: "100%", flex: "1 1 0", minHeight: "0", display: "block" });
    this.strip = tag("div", {
      display: "flex", gap: "4px", flex: "none", height: "84px", overflowX: "auto", overflowY: "hidden",
    });
    this.strip.className = "rlr-strip";
    this.element.append(head, this.legend, this.chart, this.strip);
    this.shown = null; // the samples that are drawn
    this.show({ state: "idle", points: [], samples: [] });
  }

  show(state) {
    this.light.style.background = STATES[state.state] ?? STATES.idle;
    this.status.textContent = sentence(state);
    this.status.title = this.status.textContent;
    this.clock.textContent = state.seconds ? duration(state.seconds) : "";
    this.drawChart(state);
    this.drawStrip(state.samples ?? []);
  }

  drawChart(state) {
    const points = state.points ?? [];
    this.chart.replaceChildren();
    this.legend.replaceChildren();
    for (let i = 0; i <= 4; i++) {
      const y = 4 + (i * (HIGH - 8)) / 4;
      this.chart.append(svg("line", { x1: 0, x2: WIDE, y1: y, y2: y, stroke: "#2a2c33", "stroke-width": 1,
        "vector-effect": "non-scaling-stroke" }));
    }
    const last = Math.max(state.steps || 0, ...points.map((p) => p.step), 1);
    for (const series of SERIES) {
      const own = points.filter((p) => Number.isFinite(p[series.key]));
      if (!own.length) continue;
      const values = own.map((p) => p[series.key]);
      const low = Math.min(...values);
      const spread = Math.max(...values) - low || 1;
      const places = own.map((p) => [
        LEFT + (p.step / last) * (WIDE - LEFT - RIGHT),
        HIGH - 6 - ((p[series.key] - low) / spread) * (HIGH - 12),
      ]);
      if (series.dots) {
        this.line(places, series, 1);
      } else {
        this.line(places, { ...series, key: `${series.key} as it is` }, 0.3);
        this.line(smoothed(places), series, 1);
      }
      const dots = series.dots || places.length === 1 ? places : [];
      for (const [x, y] of dots) {
        // a line of no length with round ends is a dot that the stretched chart leaves round
        this.chart.append(svg("line", { x1: x, x2: x, y1: y, y2: y, stroke: series.color, "stroke-width": 6,
          "stroke-linecap": "round", "vector-effect": "non-scaling-stroke" }));
      }
      this.legend.prepend(this.entry(series, state, values));
    }
  }

  line(places, series, opacity) {
    this.chart.append(svg("polyline", {
      points: places.map((xy) => xy.map((v) => v.toFixed(2)).join(",")).join(" "), fill: "none",
      stroke: series.color, "stroke-width": series.width, "stroke-opacity": opacity,
      "stroke-linejoin": "round", "vector-effect": "non-scaling-stroke", "data-series": series.key,
    }));
  }

  entry(series, state, values) {
    const name = { reward: state.reward, judge: state.judge || "held out" }[series.key];
    const item = tag("span", { color: series.color, whiteSpace: "nowrap" });
    const from = series.key === "kl" || values.length < 2 ? "" : `${short(values[0])} \u2192 `;
    item.textContent = `${series.label} ${from}${short(values.at(-1))}`;
    item.title = name ? `${series.label}: ${name}` : series.label;
    return item;
  }

  drawStrip(samples) {
    const key = samples.map((s) => s.step).join();
    if (key === this.shown) return;
    this.shown = key;
    this.strip.replaceChildren();
    for (const sample of samples) {
      if (!PICTURE.test(sample.image)) continue;
      const figure = tag("div", { flex: "none", textAlign: "center" });
      const image = tag("img", { height: "66px", display: "block", borderRadius: "3px" });
      image.src = sample.image;
      image.draggable = false;
      const caption = tag("div", { fontSize: "10px", color: "#8b8b8b", lineHeight: "14px" });
      caption.textContent = sample.step ? `update ${sample.step}` : "before";
      figure.append(image, caption);
      this.strip.append(figure);
    }
    this.strip.scrollLeft = this.strip.scrollWidth;
  }
}

function sentence(state) {
  if (state.state === "idle") return "The curve and samples appear here when the training runs.";
  const place = `update ${state.step} of ${state.steps}`;
  if (state.state === "failed" || state.state === "cancelled") return `${place}: ${state.message}`;
  if (state.state === "finished") return `${state.run}: ${place}. ${state.message || "Finished."}`;
  const within = state.phase ? ` · ${state.phase}${state.total ? ` ${state.done} of ${state.total}` : ""}` : "";
  return `${place}${within}${state.message ? ` · ${state.message}` : ""}`;
}

// Heights averaged over neighbours, a twelfth of the curve to either side.
function smoothed(places) {
  const reach = Math.floor(places.length / 12);
  return places.map(([x], i) => {
    const near = places.slice(Math.max(0, i - reach), i + reach + 1);
    return [x, near.reduce((sum, place) => sum + place[1], 0) / near.length];
  });
}

function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function duration(seconds) {
  const whole = Math.round(seconds);
  const pad = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const rest = `${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}`;
  return hours ? `${hours}:${rest}` : rest;
}

function tag(name, style) {
  const element = document.createElement(name);
  Object.assign(element.style, style);
  return element;
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
