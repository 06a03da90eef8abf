"use strict";
// The viewer and the plots. Whatever a model wrote reaches the page through textContent only, never as markup.

const { samples, images, plots } = JSON.parse(document.getElementById("data").textContent);
const FILTERS = {
  all: "All", error: "Errors", truncated: "Truncated", empty: "Empty", format: "Format errors", wrong: "Wrong", right: "Right",
};
const TEXTS = ["prompt", "predict", "reasoning", "answer", "label", "id", "error", "message"];
const byId = (id) => document.getElementById(id);
const state = { filter: "all", terms: [], found: [], current: null };

for (const sample of samples) {
  const extra = Object.values(sample.extra ?? {});
  sample.text = [...TEXTS.map((name) => sample[name]), ...extra].filter(Boolean).join("\n").toLowerCase();
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Text with the searched terms marked and the prompt's special tokens set back.
function richText(text) {
  const terms = state.terms.map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pattern = new RegExp(`(${terms.join("|") || "(?!)"})|(<\\|[^|<>]{1,40}\\|>)`, "gi");
  const made = document.createDocumentFragment();
  let last = 0;
  for (const match of text.matchAll(pattern)) {
    if (!match[0]) continue;
    made.append(text.slice(last, match.index), element(match[1] ? "mark" : "span", match[1] ? "" : "special", match[0]));
    last = match.index + match[0].length;
  }
  made.append(text.slice(last));
  return made;
}

function block(name, text, className = "text") {
  const body = text?.trim() ? element("pre", className, richText(text)) : element("p", "none", "empty");
  return element("section", "", element("h4", "", name), body);
}

function folded(name, ...children) {
  const made = element("details", "", element("summary", "", name), ...children);
  made.open = state.terms.length > 0 && children.some((child) => child.querySelector("mark"));
  return made;
}

function flagsOf(sample) {
  return sample.flags.map((flag) => element("span", `flag ${flag}`, flag === "error" ? sample.error : flag));
}

function listItem(sample, number) {
  const line = (sample.message ?? sample.predict ?? "").trim().slice(0, 160) || "(empty)";
  const place = element("div", "place", element("b", "", `${sample.index}.${sample.sample}`), ...flagsOf(sample));
  const item = element("li", "", place, element("div", "snippet", line));
  item.dataset.number = number;
  return item;
}

function facts(sample) {
  const count = (name, number) => number === undefined ? null : `${number.toLocaleString("en")} ${name} tokens`;
  const finish = sample.finish_reason && `finish_reason ${sample.finish_reason}`;
  const id = sample.id && `id ${sample.id}`;
  return [id, finish, count("prompt", sample.prompt_tokens), count("completion", sample.completion_tokens)]
    .filter(Boolean).join(" · ");
}

function siblings(sample) {
  const others = samples.filter((other) => other.index === sample.index);
  if (others.length < 2) return [];
  const buttons = others.map((other) => {
    const button = element("button", "", `sample ${other.sample}`);
    button.setAttribute("aria-pressed", other === sample);
    button.onclick = () => show(other);
    return button;
  });
  return [element("div", "siblings", ...buttons)];
}

function compared(sample) {
  const right = sample.flags.includes("right"), wrong = sample.flags.includes("wrong");
  const parts = [];
  if (sample.answer !== undefined) {
    parts.push(block("Answer", sample.answer, `text ${right ? "good" : ""} ${wrong ? "bad" : ""}`));
  }
  if (sample.label !== undefined) parts.push(block("Label", sample.label));
  return parts.length ? [element("div", "compared", ...parts)] : [];
}

function pictures(sample) {
  if (!sample.prompt?.includes("<|vision_start|>")) return [];
  const shown = (images[sample.index] ?? []).map((uri) => Object.assign(new Image(), { src: uri, alt: "image of the prompt" }));
  const body = shown.length ? element("div", "images", ...shown) : element("p", "none", "not among those copied into this page");
  return [element("h4", "", "Images"), body];
}

function detail(sample) {
  const head = [
    element("h3", "", `Record ${sample.index}, sample ${sample.sample}`),
    element("p", "muted", facts(sample)),
    ...siblings(sample),
  ];
  if (sample.error) return [...head, block("Error", sample.error), block("Message", sample.message)];
  const extra = Object.entries(sample.extra ?? {}).map(([name, value]) => block(name, String(value)));
  return [
    ...head,
    ...pictures(sample),
    block("Prompt", sample.prompt, "text boxed"),
    ...(sample.reasoning ? [folded("Reasoning", element("pre", "text", richText(sample.reasoning)))] : []),
    block("Completion", sample.predict),
    ...compared(sample),
    ...(extra.length ? [folded("Further fields", ...extra)] : []),
  ];
}

function show(sample) {
  state.current = sample;
  byId("detail").replaceChildren(...(sample ? detail(sample) : []));
  byId("detail").scrollTop = 0;
  byId("list").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const item = byId("list").children[state.found.indexOf(sample)];
  item?.setAttribute("aria-current", "true");
  item?.scrollIntoView({ block: "nearest" });
}

function update() {
  const has = (sample) => state.filter === "all" || sample.flags.includes(state.filter);
  state.found = samples.filter((sample) => has(sample) && state.terms.every((term) => sample.text.includes(term)));
  byId("list").replaceChildren(...state.found.map(listItem));
  const narrowed = state.filter !== "all" || state.terms.length;
  byId("matches").textContent = narrowed ? `${state.found.length.toLocaleString("en")} of the ${
    samples.length.toLocaleString("en")} shown here` : allShown;
  const top = window.scrollY;
  show(state.found.includes(state.current) ? state.current : state.found[0] ?? null);
  window.scrollTo({ top, behavior: "instant" });
}

function move(step) {
  const next = state.found[state.found.indexOf(state.current) + step];
  if (next) show(next);
}

function filterButton([flag, name]) {
  const count = flag === "all" ? samples.length : samples.filter((sample) => sample.flags.includes(flag)).length;
  if (!count) return null;
  const button = element("button", "", `${name} ${count.toLocaleString("en")}`);
  button.dataset.flag = flag;
  button.setAttribute("aria-pressed", flag === state.filter);
  button.onclick = () => {
    state.filter = flag;
    for (const other of byId("filters").children) other.setAttribute("aria-pressed", other === button);
    update();
  };
  return button;
}

const allShown = byId("matches").textContent;
byId("filters").append(...Object.entries(FILTERS).map(filterButton).filter(Boolean));
byId("search").addEventListener("input", (event) => {
  state.terms = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  update();
});
byId("list").addEventListener("click", (event) => {
  const item = event.target.closest("li");
  if (item) show(state.found[item.dataset.number]);
});
byId("list").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (step) {
    event.preventDefault();
    move(step);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== byId("search")) {
    event.preventDefault();
    byId("search").focus();
  }
});
update();

const onAxis = (axis, given) => ({ ...axis, ...given, title: { ...axis.title, ...given?.title } });

// The plots take their colours from the page's, and again when the system's theme changes.
function themed(name, figure) {
  const style = getComputedStyle(document.documentElement);
  const color = (variable) => style.getPropertyValue(variable).trim();
  const axis = { gridcolor: color("--line"), linecolor: color("--line"), zerolinecolor: color("--line"), automargin: true,
    title: { font: { size: 12 } } };
  const given = figure.layout;
  const layout = {
    margin: { l: 52, r: 14, t: 10, b: 46 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("--muted") },
    colorway: [color("--accent"), "#e0793a", "#2a9d8f", "#8f65d6", "#cf5a86", "#8a9a3b", "#4aa3c7", "#b9913a"],
    hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
    ...given, xaxis: onAxis(axis, given.xaxis), yaxis: onAxis(axis, given.yaxis),
  };
  if (name === "errors") layout.colorway = [color("--bad")];
  const heat = [[0, color("--soft")], [1, color("--accent")]];
  const data = figure.data.map((trace) => (trace.type === "heatmap" ? { ...trace, colorscale: heat } : trace));
  return [data, layout];
}

function draw() {
  for (const place of document.querySelectorAll("[data-plot]")) {
    const [data, layout] = themed(place.dataset.plot, plots[place.dataset.plot]);
    Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
  }
}

// The places have their height before the plots come, and keep it when they are resized.
for (const place of document.querySelectorAll("[data-plot]")) {
  place.style.height = `${plots[place.dataset.plot].layout.height ?? 260}px`;
}

// Plotly's five megabytes are run only once the page is painted and can be searched.
function start() {
  const script = document.createElement("script");
  script.textContent = byId("plotly").textContent;
  document.head.append(script);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

requestAnimationFrame(() => setTimeout(start));
