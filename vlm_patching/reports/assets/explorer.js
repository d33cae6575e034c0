// The map's controls, its cursor, its table, and what happens when anything of them changes.

/** A select of (value, label, disabled) with a label above it. */
function chooser(name, options, value, change) {
  const select = element("select", { "data-control": name }, options.map(([key, label, disabled]) =>
    element("option", { value: key, selected: String(key) === String(value), disabled }, label)));
  select.addEventListener("change", () => { change(select.value); refresh(); });
  return element("label", {}, name, select);
}

function controls() {
  const made = [];
  const metrics = [...new Set(map.quantities.map((one) => one.metric))];
  if (metrics.length > 1) {
    made.push(chooser("Metric", metrics.map((one) => [one, data.metrics[one]]), quantity().metric, chooseMetric));
  }
  const same = map.quantities.map((one, i) => [i, one.label + (one.unit ? ` (${one.unit})` : ""), one.metric]).filter(([, , metric]) => metric === quantity().metric);
  if (same.length > 1) made.push(chooser("Show", same.map(([i, label]) => [i, label]), state.quantity, (i) => { state.quantity = Number(i); }));
  const kept = data.pairs.map((record, i) => [i, record]).filter(([, record]) => record.kept);
  const pairs = kept.map(([i, record]) => [i, shortened(`${record.id}: ${record.answer}${record.foil ? ` / ${record.foil}` : ""}`, 60), !hasPair(i)]);
  made.push(chooser("Pair", [[-1, `mean of ${kept.length} pairs`], ...pairs], state.pair, (i) => { state.pair = Number(i); }));
  if (map.blocks.length > 1) {
    made.push(chooser("Site", map.blocks.map((one, i) => [i, one.site]), state.block, chooseBlock));
  }
  map.selectors.forEach((selector, i) => {
    if (selector.labels.length < 2) return;
    const name = selector.dim[0].toUpperCase() + selector.dim.slice(1);
    made.push(chooser(name, selector.labels.map((label, k) => [k, label]), state.chosen[i], (k) => { state.chosen[i] = Number(k); }));
  });
  if (canBeLines()) made.push(chooser("As", [["map", "map"], ["lines", "lines"]], state.view, (view) => { state.view = view; }));
  if (state.view === "map" && (map.blocks.length > 1 || map.selectors.some((one) => one.labels.length > 1))) {
    const box = element("input", { type: "checkbox", checked: state.oneScale, "data-control": "scale" });
    box.addEventListener("change", () => { state.oneScale = box.checked; refresh(); });
    made.push(element("label", { class: "tick" }, box, "one colour scale for all maps"));
  }
  return made;
}

const canBeLines = () => block().layers.length > 1 && lineColumns().length <= MOST_LINES;

/** The same kind of number of another metric, or its first one. */
function chooseMetric(metric) {
  const alike = map.quantities.findIndex((one) => one.metric === metric && one.kind === quantity().kind);
  state.quantity = alike >= 0 ? alike : map.quantities.findIndex((one) => one.metric === metric);
}

/** Another site: the cursor stays at its layer and column where the site has them. */
function chooseBlock(number) {
  const [layer, column] = [block().layers[state.layer], block().columns[state.column]];
  state.block = Number(number);
  state.layer = Math.max(0, block().layers.indexOf(layer));
  state.column = block().columns.indexOf(column);
  if (state.column < 0) state.column = 0;
}

/** Draws everything anew. */
function refresh() {
  if (state.view === "lines" && !canBeLines()) state.view = "map";
  const open = document.activeElement && document.activeElement.dataset && document.activeElement.dataset.control;
  byId("controls").replaceChildren(...controls());
  if (open) document.querySelector(`[data-control="${open}"]`)?.focus();
  byId("map-said").textContent = said();
  byId("map-legend").textContent = state.view === "map" ? `Grey: not run. ${quantity().meaning}` : quantity().meaning;
  byId("reset-zoom").hidden = state.view !== "map" || block().columns.length <= ROOM;
  (state.view === "map" ? drawMap() : drawLines()).then(listen);
  inspect(state.layer, state.column);
  if (byId("table-alternative").open) fillTable();
  refreshStrongest();
}

function said() {
  const whose = state.pair < 0 ? `mean of ${data.pairs.filter((record) => record.kept).length} pairs` : `pair ${data.pairs[state.pair].id}`;
  return `${quantity().title}, ${whose}, at ${[block().site, ...chosenWords()].join(", ")}`;
}

/** Pointing shows a cell, leaving goes back to the chosen one, a click chooses. */
function listen() {
  const target = byId("map");
  target.removeAllListeners("plotly_hover");
  target.removeAllListeners("plotly_unhover");
  target.removeAllListeners("plotly_click");
  target.removeAllListeners("plotly_relayout");
  target.on("plotly_hover", (event) => inspect(...cellOf(event.points[0])));
  target.on("plotly_unhover", () => inspect(state.layer, state.column));
  target.on("plotly_click", (event) => choose(...cellOf(event.points[0])));
  target.on("plotly_relayout", (event) => {
    const zoomed = event["xaxis.range"] || (event["xaxis.range[0]"] !== undefined && [event["xaxis.range[0]"], event["xaxis.range[1]"]]);
    if (!zoomed || state.view !== "map") return;
    const { tickvals, ticktext } = columnTicks(...zoomed);
    Plotly.relayout(target, { "xaxis.tickvals": tickvals, "xaxis.ticktext": ticktext });
  });
}

const cellOf = (point) => (state.view === "map" ? [Math.round(point.y), Math.round(point.x)] : point.customdata);

function choose(layer, column) {
  Object.assign(state, { layer, column });
  Plotly.relayout(byId("map"), { shapes: state.view === "map" ? [frame()] : [...ownOutput(), frame()], ...inSight(column) });
  inspect(layer, column);
  const ends = state.pair < 0 ? interval(layer, column) : "";
  byId("announcer").textContent = `${cellName(layer, column)}: ${shown(valueAt(layer, column), quantity().unit)}${ends ? `, 95 % interval ${ends}` : ""}`;
}

/** A zoomed map goes along with the cell. */
function inSight(column) {
  if (state.view !== "map") return {};
  const [from, to] = byId("map")._fullLayout.xaxis.range;
  if (column >= from && column <= to) return {};
  const start = Math.max(-0.5, Math.min(column - (to - from) / 2, block().columns.length - 0.5 - (to - from)));
  return { "xaxis.range": [start, start + to - from] };
}

/** Arrow keys: up and down go through layers, left and right through columns; in lines the other way round. */
function moved(key) {
  const lines = state.view === "lines";
  const columns = lines ? lineColumns() : block().columns.map((_, i) => i);
  let [layer, at] = [state.layer, Math.max(0, columns.indexOf(state.column))];
  const steps = lines
    ? { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
    : { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1], PageDown: [0, 10], PageUp: [0, -10] };
  if (key === "Home") layer = 0;
  else if (key === "End") layer = block().layers.length - 1;
  else if (steps[key]) {
    layer += steps[key][0];
    at += steps[key][1];
  } else return null;
  const within = (value, count) => Math.max(0, Math.min(count - 1, value));
  return [within(layer, block().layers.length), columns[within(at, columns.length)]];
}

function fillTable() {
  const unit = quantity().unit;
  const head = element("tr", {}, element("th", { scope: "col" }, "layer"), block().columns.map((_, i) => element("th", { scope: "col", class: "number" }, columnName(i))));
  const rows = table().map((row, layer) => element("tr", {}, element("th", { scope: "row" }, String(block().layers[layer])),
    row.map((value) => element("td", { class: "number" }, shown(value)))));
  byId("map-table").replaceChildren(element("table", {}, element("caption", { class: "small soft" }, said() + (unit ? ` (${unit})` : "")),
    element("thead", {}, head), element("tbody", {}, rows.reverse())));
}

function startExplorer() {
  byId("explorer").hidden = false;
  Object.assign(state, strongestCell(map.blocks.map((_, i) => i)));
  const few = block().columns.length <= 8;
  if (canBeLines() && (data.method === "knockout" || (data.method === "lens" && few))) state.view = "lines";
  refresh();
  byId("map").addEventListener("keydown", (event) => {
    const to = event.ctrlKey || event.metaKey || event.altKey ? null : moved(event.key);
    if (to) {
      event.preventDefault();
      choose(...to);
    }
  });
  byId("table-alternative").addEventListener("toggle", fillTable);
  byId("reset-zoom").addEventListener("click", () => Plotly.relayout(byId("map"), { "xaxis.range": [-0.5, block().columns.length - 0.5] }));
  byId("save-map").addEventListener("click", () => Plotly.downloadImage(byId("map"), { format: "png", scale: 2, filename: document.title }));
  dark.addEventListener("change", refresh);
  narrow.addEventListener("change", () => {
    Plotly.purge(byId("map")); // a colour bar that turned round would leave its old axis
    refresh();
  });
}
