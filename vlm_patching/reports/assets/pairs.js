// The pairs: a list to choose from, and everything about the chosen one.

const browsing = { pair: 0, filter: "all" };
const filters = {
  all: ["all pairs", () => true],
  kept: ["kept pairs", (record) => record.kept],
  "left out": ["pairs left out", (record) => !record.kept],
};

const listed = () => data.pairs.map((_, i) => i).filter((i) => filters[browsing.filter][1](data.pairs[i]));

function fillList() {
  byId("pair-list").replaceChildren(...listed().map((i) => {
    const record = data.pairs[i];
    const picture = pictureOf(i);
    const thumb = picture ? element("img", { src: picture.link, alt: "", class: pixelated(picture) }) : null;
    const words = element("span", { class: record.kept ? null : "left-out" }, element("strong", {}, shortened(record.id, 32)), element("br"),
      shortened([record.answer, record.foil].filter(Boolean).join(" / "), 40), record.kept ? "" : ", left out");
    const item = element("li", { id: `pair-${i}`, role: "option", "aria-selected": "false" }, thumb, words);
    item.addEventListener("click", () => choosePair(i));
    return item;
  }));
}

function choosePair(pair, focus = true) {
  browsing.pair = pair;
  for (const item of byId("pair-list").children) item.setAttribute("aria-selected", String(item.id === `pair-${pair}`));
  byId("pair-list").setAttribute("aria-activedescendant", `pair-${pair}`);
  const chosen = byId(`pair-${pair}`);
  const list = byId("pair-list");
  if (chosen && focus) {
    list.scrollTop = Math.max(Math.min(list.scrollTop, chosen.offsetTop), chosen.offsetTop + chosen.offsetHeight - list.clientHeight);
    list.scrollLeft = Math.max(Math.min(list.scrollLeft, chosen.offsetLeft), chosen.offsetLeft + chosen.offsetWidth - list.clientWidth);
  }
  byId("pair-detail").replaceChildren(...details(pair));
}

function details(pair) {
  const record = data.pairs[pair];
  const why = record.kept ? "Kept." : `${record.why[0].toUpperCase()}${record.why.slice(1)}.`;
  const made = [element("h3", {}, record.id), element("p", { class: "outcome" }, why)];
  if (record.prompts.length) made.push(element("div", { class: "prompts" }, record.prompts.map((prompt) => promptCard(record, prompt))));
  else made.push(element("p", { class: "prompt" }, record.text));
  made.push(outcomes(record));
  if (map && hasPair(pair)) {
    made.push(element("div", { id: "pair-strongest" }, strongestOf(pair)));
    const button = element("button", { type: "button", id: "to-map" }, "Show this pair in the map");
    button.addEventListener("click", () => {
      state.pair = pair;
      refresh();
      byId("map-title").scrollIntoView();
      byId("map").focus({ preventScroll: true });
    });
    made.push(element("p", {}, button));
  }
  return made;
}

function promptCard(record, prompt) {
  const said = prompt.run === "clean" ? record.said_clean : record.said_corrupted;
  const pictures = prompt.pictures.map((number, k) => {
    const picture = data.pictures[number];
    if (!picture.link) return element("p", { class: "soft small" }, "(picture left out)");
    const boxes = k === 0 ? prompt.regions.map(([, box]) => ({ box, dashed: true })) : [];
    const names = prompt.regions.map(([name]) => name).join(", ");
    return painted(picture, `The ${prompt.run} picture of pair ${record.id}${boxes.length ? `, with a frame around: ${names}` : ""}`, [], boxes);
  });
  return element("div", {}, element("h4", {}, `${prompt.run} run`), pictures, markedPrompt(prompt.parts),
    prompt.noise ? element("p", { class: "soft small" }, `with ${prompt.noise}`) : null,
    element("p", {}, "The model says ", element("strong", {}, said || "(nothing yet)")));
}

function outcomes(record) {
  const corrupted = record.metrics.some((one) => one.corrupted !== undefined);
  const heads = ["", "clean run", ...(corrupted ? ["corrupted run"] : [])].map((name) => element("th", { scope: "col", class: name ? "number" : null }, name));
  const row = (name, cells, more = "") => element("tr", {}, element("th", { scope: "row" }, name), cells.map((cell) => element("td", { class: `number${more}` }, cell)));
  const rows = [row("says", [record.said_clean, ...(corrupted ? [record.said_corrupted] : [])], " said")];
  for (const one of record.metrics) {
    rows.push(row(data.metrics[one.metric], [shown(one.clean), ...(corrupted ? [shown(one.corrupted)] : [])]));
  }
  const words = [["answer", record.answer], ["foil", record.foil], ["task", record.task]].filter(([, word]) => word);
  return element("div", {}, element("p", {}, words.map(([name, word], i) => [i ? "; " : "", `${name} `, element("strong", {}, word)])),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "What the runs said" },
      element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, rows))));
}

/** The five cells of a pair furthest from the middle, of all sites, under the map's choices. */
function strongestOf(pair) {
  const middle = quantity().middle ?? 0;
  const found = map.blocks.flatMap((of, at) => {
    const own = numbers(state.quantity, at, pair);
    if (!own) return [];
    return of.layers.flatMap((_, layer) => of.columns.map((_, column) => ({ of, layer, column, value: own[place(layer, column, of)] })));
  }).filter(({ value }) => !Number.isNaN(value));
  found.sort((a, b) => Math.abs(b.value - middle) - Math.abs(a.value - middle));
  const site = (of) => (map.blocks.length > 1 ? `${of.site}, ` : "");
  const rows = found.slice(0, 5).map(({ of, layer, column, value }) => element("tr", {},
    element("td", {}, site(of) + cellName(layer, column, of)), element("td", { class: "number" }, shown(value, quantity().unit))));
  return [element("h4", {}, `Its strongest cells: ${quantity().title}`),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Strongest cells of this pair" },
      element("table", {}, element("tbody", {}, rows)))];
}

/** After the map shows something else. */
function refreshStrongest() {
  const target = byId("pair-strongest");
  if (target) target.replaceChildren(...strongestOf(browsing.pair));
}

function startPairs() {
  byId("browser").hidden = false;
  const filter = byId("pair-filter");
  const named = Object.entries(filters).map(([key, [name, wanted]]) => [key, name, data.pairs.filter(wanted).length]);
  filter.append(...named.map(([key, name, count]) => element("option", { value: key, disabled: !count }, `${name} (${count})`)));
  filter.addEventListener("change", () => {
    browsing.filter = filter.value;
    fillList();
    choosePair(listed()[0]);
  });
  byId("pair-list").addEventListener("keydown", (event) => {
    const all = listed();
    const at = all.indexOf(browsing.pair);
    const to = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choosePair(all[Math.max(0, Math.min(all.length - 1, to))]);
  });
  fillList();
  choosePair(0, false);
}
