// The map and the lines, by the plotting library.

const settings = { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false };
const ROOM = 40; // columns from which on a map can be zoomed by dragging
const MOST_LINES = 12;

const bare = () => ({ paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "inherit", color: color("ink"), size: 12 } });
const axis = () => ({ color: color("ink"), gridcolor: color("line"), linecolor: color("line"), zeroline: false });
const hover = () => ({ bgcolor: color("paper"), bordercolor: color("soft"), font: { color: color("ink"), family: "inherit", size: 13 }, align: "left" });

/** What a cell's label says when one points at it. */
function hoverText(layer, column, value) {
  const { at, table } = placeOf(column);
  const token = map.across === "position" || map.across === "key" ? described(table, "token", at, state.pair) : "";
  const ends = state.pair < 0 ? interval(layer, column) : "";
  return [
    `<b>${shown(value, quantity().unit)}</b>`,
    ends && `95 % interval ${ends}`,
    plain(shortened(cellName(layer, column), 60)),
    token && `token ${plain(shortened(token, 40))}`,
  ].filter(Boolean).join("<br>");
}

function drawMap() {
  const values = table();
  const columns = block().columns.map((_, i) => i);
  const layers = block().layers.map((_, i) => i);
  const text = values.map((row, layer) => row.map((value, column) => hoverText(layer, column, value)));
  const scale = scaleOf();
  const signed = scale.middle !== null;
  const many = columns.length > ROOM;
  const gap = many ? 0 : 1;
  const common = { type: "heatmap", x: columns, y: layers, text, hovertemplate: "%{text}<extra></extra>", hoverlabel: hover(), xgap: gap, ygap: gap };
  const cells = {
    ...common, z: values, zmin: scale.low, zmax: scale.high, hoverongaps: false,
    colorscale: signed ? [[0, color("low")], [0.5, color("middle")], [1, color("high")]] : "Viridis",
    colorbar: colorbar(),
  };
  const missing = {
    ...common, z: values.map((row) => row.map((value) => (Number.isNaN(value) ? 1 : null))), showscale: false,
    colorscale: [[0, color("not-run")], [1, color("not-run")]], hoverongaps: false,
  };
  const steep = columns.some((i) => columnName(i).length > 2);
  const side = many ? 15 : Math.max(20, Math.min(34, 640 / layers.length));
  const layout = {
    ...bare(), height: Math.round(side * layers.length + (steep ? 130 : 80) + (narrow.matches ? 70 : 0)),
    margin: { l: 48, r: 8, t: 8, b: 40 }, dragmode: many && !narrow.matches ? "zoom" : false,
    xaxis: { ...axis(), ...columnTicks(0, columns.length), tickangle: steep ? -50 : 0, automargin: true, showgrid: false,
      title: { text: map.across, standoff: 8 }, range: [-0.5, columns.length - 0.5], fixedrange: !many },
    yaxis: { ...axis(), tickvals: layers.filter((i) => layers.length <= 20 || i % 2 === 0), ticktext: block().layers.filter((_, i) => layers.length <= 20 || i % 2 === 0).map(String),
      title: { text: "layer", standoff: 6 }, range: [-0.5, layers.length - 0.5], fixedrange: true, showgrid: false },
    shapes: [frame()],
  };
  byId("map").style.maxWidth = `${Math.max(340, 90 * columns.length + 180)}px`;
  return Plotly.react(byId("map"), [cells, missing], layout, settings);
}

/** Names of the columns between two, as many as can be read. */
function columnTicks(from, to) {
  const step = Math.max(1, Math.ceil((to - from) / ROOM));
  const tickvals = block().columns.map((_, i) => i).filter((i) => i >= from && i <= to && i % step === 0);
  return { tickvals, ticktext: tickvals.map((i) => plain(shortened(columnName(i), 18))) };
}

function colorbar() {
  const title = { text: plain(quantity().label + (quantity().unit ? ` (${quantity().unit})` : "")), side: narrow.matches ? "top" : "right", font: { size: 12 } };
  const common = { thickness: 12, outlinewidth: 0, tickfont: { color: color("ink") }, title };
  return narrow.matches ? { ...common, orientation: "h", y: -0.02, yanchor: "top", yref: "container", x: 0.5, len: 0.9 } : { ...common, len: 1 };
}

/** The frame around the chosen cell. */
function frame() {
  const { layer, column } = state;
  const line = { color: color("mark"), width: 2.5 };
  if (state.view === "map") {
    return { type: "rect", x0: column - 0.5, x1: column + 0.5, y0: layer - 0.5, y1: layer + 0.5, line };
  }
  const [x, y] = [block().layers[layer], valueAt(layer, column)];
  return { type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y, x0: -8, x1: 8, y0: -8, y1: 8, line, visible: !Number.isNaN(y) };
}

/** Columns that have a number: each is a line. */
const lineColumns = () => block().columns.map((_, i) => i).filter((i) => block().layers.some((_, layer) => !Number.isNaN(valueAt(layer, i))));

function drawLines() {
  const layers = block().layers;
  const symbols = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"];
  const bands = [];
  const lines = lineColumns().map((column, k) => {
    const stroke = color(`line-${(k % 8) + 1}`);
    const values = layers.map((_, layer) => valueAt(layer, column));
    if (state.pair < 0) bands.push(band(column, stroke));
    return {
      type: "scatter", mode: "lines+markers", x: layers, y: values, name: plain(shortened(columnName(column), 34)),
      line: { color: stroke, width: 2, dash: k < 8 ? "solid" : "dash" }, marker: { size: 7, symbol: symbols[k % 8] },
      text: values.map((value, layer) => hoverText(layer, column, value)), hovertemplate: "%{text}<extra></extra>",
      hoverlabel: hover(), customdata: layers.map((_, layer) => [layer, column]), connectgaps: true,
    };
  });
  const below = narrow.matches || lines.some((line) => line.name.length > 20);
  const layout = {
    ...bare(), height: below ? 400 + 22 * lines.length : 420, margin: { l: 62, r: 10, t: 10, b: 46 }, dragmode: false, hovermode: "closest",
    xaxis: { ...axis(), title: { text: "layer", standoff: 8 }, fixedrange: true, dtick: layers.length <= 16 ? 1 : undefined, showgrid: false },
    yaxis: { ...axis(), title: { text: plain(quantity().label + (quantity().unit ? ` (${quantity().unit})` : "")), standoff: 8 }, fixedrange: true,
      zeroline: true, zerolinecolor: color("soft"), automargin: true },
    legend: { font: { size: 12 }, ...(below ? { orientation: "h", x: 0, y: -0.18, yanchor: "top" } : {}) },
    showlegend: true, shapes: [...ownOutput(), frame()],
  };
  byId("map").style.maxWidth = "";
  return Plotly.react(byId("map"), [...bands, ...lines], layout, settings);
}

/** The 95 % interval of a line's mean, as a band. */
function band(column, stroke) {
  const known = block().layers.map((layer, i) => [layer, valueAt(i, column, -1, "low"), valueAt(i, column, -1, "high")]).filter(([, low]) => !Number.isNaN(low));
  const there = known.map(([layer, , high]) => [layer, high]);
  const back = known.map(([layer, low]) => [layer, low]).reverse();
  const around = [...there, ...back];
  return {
    type: "scatter", mode: "lines", x: around.map(([x]) => x), y: around.map(([, y]) => y), fill: "toself", hoverinfo: "skip",
    fillcolor: `rgba(${channels(stroke).join(",")},0.16)`, line: { width: 0 }, showlegend: false,
  };
}

/** What the model itself says, beside what a lens reads. */
function ownOutput() {
  if (data.method !== "lens") return [];
  const values = data.pairs.filter((record, i) => (state.pair < 0 ? record.kept : i === state.pair))
    .map((record) => record.metrics.find((one) => one.metric === quantity().metric).clean);
  const y = values.reduce((sum, value) => sum + value, 0) / values.length;
  return [{
    type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: color("soft"), dash: "dash", width: 1.5 },
    label: { text: `the model itself: ${shown(y)}`, textposition: "start", font: { color: color("soft"), size: 12 } },
  }];
}
