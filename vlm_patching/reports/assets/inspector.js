// The chosen cell: its number, what it is, where it is in the picture and the prompt, and its number in every pair.

/** Shows a cell of the map, as the block numbers them. */
function inspect(layer, column) {
  const unit = quantity().unit;
  const value = valueAt(layer, column);
  const rows = facts(layer, column);
  const name = cellName(layer, column);
  byId("inspector").replaceChildren(
    element("h4", {}, name),
    element("p", { class: "big" }, shown(value, unit)),
    element("p", { class: "soft small" }, quantity().title),
    element("dl", {}, rows.map(([what, words]) => [element("dt", {}, what), element("dd", {}, words)])),
    ...pictured(layer, column),
    ...prompted(layer, column),
    element("div", { id: "spread" }),
  );
  spread(layer, column);
}

/** What a cell is called: layer, then the column, then what else is chosen. */
function cellName(layer, column, of = block()) {
  const [label, name] = [columnLabel(column, of), columnName(column, of)];
  const across = (map.across === "edges" ? label : `${map.across} ${label}`) + (name === label ? "" : ` (${name})`);
  return [`layer ${of.layers[layer]}`, across, ...chosenWords()].join(", ");
}

function chosenWords() {
  return map.selectors.map((selector, i) => `${selector.dim} ${selector.labels[state.chosen[i]]}`);
}

function interval(layer, column) {
  const [low, high] = ["low", "high"].map((end) => valueAt(layer, column, -1, end));
  return Number.isNaN(low) ? "" : `${shown(low)} to ${shown(high, quantity().unit)}`;
}

function facts(layer, column) {
  const { at, table } = placeOf(column);
  const rows = state.pair < 0
    ? [["95 % interval", interval(layer, column) || "none (one pair)"]]
    : [["mean of pairs", shown(valueAt(layer, column, -1), quantity().unit)], ["95 % interval", interval(layer, column)]];
  rows.push(["site", block().site]);
  for (const name of ["token", "role", "modality"]) rows.push([name, described(table, name, at, state.pair)]);
  return rows.filter(([, words]) => words);
}

/** The place (position or key) that a cell is at, and the tables that describe it. */
function placeOf(column) {
  if (map.across === "position" || map.across === "key") return { at: block().columns[column], table: map.places };
  const chosen = map.selectors.findIndex((selector) => selector.dim === "position");
  return { at: chosen < 0 ? 0 : state.chosen[chosen], table: map.across === "edges" ? null : map.places };
}

/** The picture of the pair, painted with what its patches do in this layer, or with what the head looks at. */
function pictured(layer, column) {
  const pair = pairShown(state.pair);
  const { at, table } = placeOf(column);
  const number = table ? table.picture[at] : 0;
  const picture = pictureOf(pair, 0, number);
  if (!picture) return [];
  const box = table && told(table, "box", pair) ? told(table, "box", pair)[at] : null;
  const { patches, said } = map.looks ? looked(layer, column, pair) : done(layer, pair, number);
  const whose = `${state.pair < 0 ? "The picture of pair " : "Pair "}${data.pairs[pair].id}`;
  const around = box ? "; the frame is around this place" : "";
  const words = `${whose}${said}${around}.`;
  const frame = box ? [{ box }] : [];
  return [element("figure", { class: "painted" }, painted(picture, words, patches, frame), element("figcaption", {}, words))];
}

/** Patches of the picture, tinted by their numbers in a layer of the map. */
function done(layer, pair, number) {
  const boxes = map.places && map.across !== "head" && map.across !== "edges" && told(map.places, "box", pair);
  if (!boxes) return { patches: [], said: "" };
  const single = told(map.places, "patch", pair);
  const scale = scaleOf();
  const patches = block().columns.flatMap((at, column) => (single[at] && boxes[at] && map.places.picture[at] === number
    ? [{ box: boxes[at], fill: tint(valueAt(layer, column), scale) }] : []));
  return { patches, said: patches.length ? `, its patches tinted by their ${quantity().label} in layer ${block().layers[layer]}` : "" };
}

/** Patches of the picture, tinted by a head's attention. */
function looked(layer, column, pair) {
  const name = `${block().site}|${block().layers[layer]}|${columnLabel(column)}`;
  const found = map.looks.heads[name];
  const count = Object.keys(map.looks.heads).length;
  if (!found || !found[pair]) return { patches: [], said: found ? "" : `; what this head looks at is not in the file (only of ${count} of ${map.looks.all} heads)` };
  const { at } = placeOf(column);
  const keys = map.looks.keys;
  const values = unpack(found[pair]).subarray(at * keys.length, (at + 1) * keys.length);
  const most = Math.max(...[...values].map((value) => (Number.isNaN(value) ? 0 : Math.abs(value)))) || 1;
  const scale = map.looks.minus_mean ? { low: -most, middle: 0, high: most } : { low: 0, middle: null, high: most };
  const boxes = told(map.keys, "box", pair);
  const patches = keys.flatMap((key, i) => (boxes && boxes[key] ? [{ box: boxes[key], fill: tint(values[i], scale) }] : []));
  return { patches, said: `, tinted by the head's attention${map.looks.minus_mean ? " minus the mean of all heads" : ""} (at most ${shown(most)})` };
}

/** The prompt: its tokens tinted where each is a cell, else its text with the place marked. */
function prompted(layer, column) {
  const pair = pairShown(state.pair);
  const { at, table } = placeOf(column);
  if (map.across === "position" && map.places) {
    const single = block().columns.map((one, i) => [one, i]).filter(([one]) => /^\d+$/.test(map.columns[one])
      && map.places.strings[told(map.places, "modality", pair)[one]] === "text");
    if (single.length > 2) return [tokens(single, layer, column, pair)];
  }
  const prompt = data.pairs[pair].prompts[0];
  if (!prompt) return [element("p", { class: "prompt" }, data.pairs[pair].text)];
  const names = table ? [table.labels[at], described(table, "role", at, pair)] : [];
  const spans = prompt.parts.flatMap(([, inside]) => inside);
  return [markedPrompt(prompt.parts, names.find((name) => spans.includes(name)))[0]];
}

function tokens(single, layer, column, pair) {
  const scale = scaleOf();
  const words = told(map.places, "token", pair);
  return element("p", { class: "prompt" }, single.map(([at, i]) => {
    const ground = tint(valueAt(layer, i), scale);
    const style = `background:${ground};color:${inkOn(ground)}`;
    return element("span", { class: i === column ? "chip here" : "chip", style }, map.places.strings[words[at]]);
  }));
}

/** The cell's number in every pair; a click chooses the pair. */
function spread(layer, column) {
  const pairs = data.pairs.map((_, i) => i).filter((i) => !Number.isNaN(valueAt(layer, column, i)));
  if (pairs.length < 2) return;
  const values = pairs.map((i) => valueAt(layer, column, i));
  const sorted = [...values].sort((a, b) => a - b);
  const said = `${pairs.length} pairs: from ${shown(sorted[0])} to ${shown(sorted.at(-1), quantity().unit)}, median ${shown(sorted[Math.floor(sorted.length / 2)])}`;
  const target = byId("spread");
  target.setAttribute("role", "img");
  target.setAttribute("aria-label", said);
  const trace = {
    type: "box", x: values, orientation: "h", boxpoints: "all", jitter: 0.9, pointpos: 0, name: "", hoveron: "points",
    line: { color: color("soft"), width: 1 }, fillcolor: "rgba(0,0,0,0)",
    marker: { size: 6, color: color("line-1"), opacity: 0.75 },
    text: pairs.map((i, k) => `${plain(shortened(data.pairs[i].id, 40))}: ${shown(values[k], quantity().unit)}`),
    hovertemplate: "%{text}<extra></extra>",
    selectedpoints: state.pair < 0 ? undefined : [pairs.indexOf(state.pair)],
    selected: { marker: { color: color("high"), opacity: 1, size: 9 } },
  };
  const layout = {
    ...bare(), height: 120, margin: { l: 8, r: 8, t: 22, b: 26 }, showlegend: false, dragmode: false,
    title: { text: "in every pair", font: { size: 12, color: color("soft") }, x: 0, xanchor: "left", y: 0.97 },
    xaxis: { ...axis(), fixedrange: true, zeroline: true, zerolinecolor: color("soft"), nticks: 5 },
    yaxis: { visible: false, fixedrange: true },
  };
  Plotly.react(target, [trace], layout, settings).then(() => target.on("plotly_click", (event) => {
    state.pair = pairs[event.points[0].pointNumber];
    refresh();
  }));
}
