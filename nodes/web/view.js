// One live view: how far the run is, a chart for each curve, and a strip of samples through time.
//
// Texts come from workflows and are only ever set as textContent.

import { COLORS, tag } from "./elements.js";

export const HEIGHT = 288; // of the widget, at least; the canvas takes MARGIN off it above and below
const MARGIN = 10;
const WIDE = 100; // of a chart's own coordinates; it is stretched to its place
const HIGH = 100;
const PICTURE = /^data:image\/(jpeg|webp);base64,/; // a still, or a video's frames, which play by themselves
const STATES = {
  running: COLORS.key,
  finished: COLORS.good,
  waiting: "#b07ce8",
  cancelled: "#d9a93a",
  failed: COLORS.bad,
  idle: "#777777",
};
const DISTANCE = "How far held-out pictures have moved from the base model's of the same seeds. 0: they are the same. "
  + "1: as different as two seeds of one prompt, which is as far as a run may sensibly go.";

export class View {
  constructor() {
    this.element = tag("div", {
      width: "100%", height: "100%", minHeight: `${HEIGHT - 2 * MARGIN}px`, boxSizing: "border-box", padding: "6px 8px", overflow: "hidden",
      display: "flex", flexDirection: "column", gap: "6px", borderRadius: "6px", background: COLORS.ground,
      color: COLORS.text, font: "12px/1.35 sans-serif",
    });
    this.element.className = "rlr-live-view";
    const head = tag("div", { display: "flex", alignItems: "flex-start", gap: "8px", flex: "0 1 auto", minHeight: "34px" });
    this.light = tag("span", { width: "8px", height: "8px", borderRadius: "50%", flex: "none", marginTop: "8px" });
    this.counter = tag("span", { fontSize: "18px", lineHeight: "24px", fontWeight: "600", whiteSpace: "nowrap", flex: "none" });
    this.counter.className = "rlr-counter";
    this.status = tag("span", {
      overflowY: "auto", overflowWrap: "anywhere", alignSelf: "stretch", flex: "1 1 0", minWidth: "0",
      paddingTop: "4px", userSelect: "text",
    });
    this.status.className = "rlr-status";
    this.clock = tag("span", {
      color: COLORS.quiet, whiteSpace: "pre", textAlign: "right", flex: "none", paddingTop: "4px",
    });
    this.clock.className = "rlr-clock";
    head.append(this.light, this.counter, this.status, this.clock);
    this.charts = tag("div", { display: "flex", gap: "10px", flex: "1 1 0", minHeight: "0" });
    this.strip = tag("div", {
      display: "flex", gap: "4px", flex: "none", height: "84px", overflowX: "auto", overflowY: "hidden",
    });
    this.strip.className = "rlr-strip";
    this.head = head;
    this.element.append(head, this.charts, this.strip);
    this.shown = null; // the samples that are drawn
    this.show({ state: "idle", points: [], samples: [] });
  }

  show(state) {
    this.state = state;
    this.at = performance.now();
    const running = state.state === "running";
    this.light.style.background = STATES[state.state] ?? STATES.idle;
    this.counter.textContent = state.steps ? `Step ${state.step} of ${state.steps}` : "";
    this.counter.title = "Updates of the LoRA that are done";
    this.status.textContent = sentence(state);
    this.status.title = this.status.textContent;
    this.tick();
    clearInterval(this.timer);
    if (running) this.timer = setInterval(() => (this.element.isConnected ? this.tick() : clearInterval(this.timer)), 1000);
    // an error is to be read whole
    this.head.style.flex = state.state === "failed" ? "1 1 auto" : "0 1 auto";
    this.head.style.maxHeight = state.state === "failed" ? "none" : "88px";
    this.strip.style.display = state.state === "failed" || !state.samples?.length ? "none" : "flex";
    this.charts.style.display = state.state === "failed" ? "none" : "flex";
    this.drawCharts(state);
    this.drawStrip(state.samples ?? []);
  }

  // The time that has gone by, and what is left, which run on between the server's news.
  tick() {
    const { seconds, left, state } = this.state;
    const since = state === "running" ? (performance.now() - this.at) / 1000 : 0;
    const lines = seconds || since ? [duration((seconds ?? 0) + since)] : [];
    if (left != null && state === "running") lines.push(`about ${duration(Math.max(0, left - since))} left`);
    this.clock.textContent = lines.join("\n");
  }

  drawCharts(state) {
    const points = state.points ?? [];
    const last = Math.max(state.steps || 0, ...points.map((p) => p.step), 1);
    const charts = [{
      name: "reward", color: "#4c9be8", lines: ["reward"], dots: "held_out",
      title: `Reward: ${state.reward}. Dots and figures: on held-out prompts and seeds; line: of the pictures trained on.`,
    }];
    if (state.judge) charts.push({
      name: "judge", color: "#e8804c", lines: [], dots: "judge",
      title: `Judge: ${state.judge}, on held-out prompts and seeds. Training does not follow it.`,
    });
    charts.push({ name: "distance", color: "#3fb37f", lines: [], dots: "distance", from: 0, to: 1, title: DISTANCE });
    const drawn = points.length ? charts.map((chart) => drawChart(chart, points, last)) : [];
    this.charts.replaceChildren(...drawn.filter(Boolean));
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
      const caption = tag("div", { fontSize: "10px", color: COLORS.quiet, lineHeight: "14px" },
        sample.step ? `update ${sample.step}` : "before");
      figure.append(image, caption);
      this.strip.append(figure);
    }
    this.strip.scrollLeft = this.strip.scrollWidth;
  }
}

// A chart with a scale of its own: its name and what it went from and to, numbers at both axes, the curve.
function drawChart(chart, points, last) {
  const keys = [...chart.lines, chart.dots];
  const values = points.flatMap((p) => keys.map((key) => p[key])).filter(Number.isFinite);
  if (!values.length) return null;
  let low = Math.min(chart.from ?? Infinity, ...values);
  let high = Math.max(chart.to ?? -Infinity, ...values);
  if (high === low) {
    low -= Math.abs(low) / 10 || 1;
    high += Math.abs(high) / 10 || 1;
  }
  const spread = high - low;
  const place = (key) => points.filter((p) => Number.isFinite(p[key]))
    .map((p) => [3 + (p.step / last) * (WIDE - 6), 4 + (1 - (p[key] - low) / spread) * (HIGH - 8)]);
  const element = tag("div", { flex: "1 1 0", minWidth: "0", display: "flex", flexDirection: "column" });
  element.className = "rlr-chart";
  element.title = chart.title;
  element.append(tag("div", { color: chart.color, whiteSpace: "nowrap", overflow: "hidden", flex: "none" },
    headline(chart, points)));
  const middle = tag("div", { display: "flex", flex: "1 1 0", minHeight: "0", gap: "3px" });
  const numbers = { color: COLORS.quiet, fontSize: "9px", lineHeight: "10px", display: "flex", justifyContent: "space-between" };
  const side = tag("div", { ...numbers, flexDirection: "column", textAlign: "right", minWidth: "24px", flex: "none" });
  side.append(tag("span", {}, short(high)), tag("span", {}, short((high + low) / 2)), tag("span", {}, short(low)));
  const plot = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none" });
  Object.assign(plot.style, { flex: "1 1 0", minWidth: "0", height: "100%", display: "block" });
  for (const y of [4, HIGH / 2, HIGH - 4]) plot.append(stroke("line", { x1: 0, x2: WIDE, y1: y, y2: y }, COLORS.frame, 1));
  for (const key of chart.lines) {
    plot.append(curve(place(key), chart.color, `${key} as it is`, 0.35), curve(smoothed(place(key)), chart.color, key, 1));
  }
  const dots = place(chart.dots);
  plot.append(curve(dots, chart.color, chart.dots, chart.lines.length ? 0 : 1));
  for (const [x, y] of dots)
    // a line of no length with round ends is a dot that the stretched chart leaves round
    plot.append(stroke("line", { x1: x, x2: x, y1: y, y2: y, "stroke-linecap": "round" }, chart.color, 6));
  middle.append(side, plot);
  const foot = tag("div", { ...numbers, flex: "none", paddingLeft: "27px" });
  foot.append(tag("span", {}, "0"), tag("span", {}, `update ${last}`));
  element.append(middle, foot);
  return element;
}

// Held-out against held-out; where nothing is held out, only what the chart is of.
function headline(chart, points) {
  const values = points.map((p) => p[chart.dots]).filter(Number.isFinite);
  const now = values.length ? short(values.at(-1)) : "";
  if (chart.name === "distance") return `distance ${now}`;
  return values.length > 1 ? `${chart.name} ${short(values[0])} \u2192 ${now}` : `${chart.name} ${now}`;
}

function curve(places, color, name, opacity) {
  return stroke("polyline", {
    points: places.map((xy) => xy.map((v) => v.toFixed(2)).join(",")).join(" "), fill: "none",
    "stroke-opacity": opacity, "stroke-linejoin": "round", "data-series": name,
  }, color, 1.6);
}

function stroke(name, attributes, color, width) {
  return svg(name, { ...attributes, stroke: color, "stroke-width": width, "vector-effect": "non-scaling-stroke" });
}

function sentence(state) {
  if (state.state === "idle") return "Progress, curves and samples appear here when the training runs.";
  if (state.state === "finished") return `${state.run}: ${state.message || "Finished."}`;
  if (state.state !== "running") return state.message;
  const words = [state.phase, state.message].filter(Boolean).join(" \u00b7 ");
  return words.charAt(0).toUpperCase() + words.slice(1);
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
  const rest = `${hours ? pad(Math.floor(whole / 60) % 60) : Math.floor(whole / 60)}:${pad(whole % 60)}`;
  return hours ? `${hours}:${rest}` : rest;
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
