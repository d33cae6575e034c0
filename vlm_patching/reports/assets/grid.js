// The numbers of the map: unpacked when they are looked at, cut to what is chosen.

const map = data.map;
const unpacked = new Map();

/** What is chosen; `pair` is -1 for the mean. */
const state = map && {
  quantity: 0, pair: -1, block: 0, chosen: map.selectors.map(() => 0), view: "map", oneScale: true,
  layer: 0, column: 0,
};

const block = () => map.blocks[state.block];
const quantity = () => map.quantities[state.quantity];
/** What is behind a share: the quantity that has numbers of its own. */
const source = (number) => (map.quantities[number].of === undefined ? number : map.quantities[number].of);
const hasPair = (pair) => map.quantities[source(state.quantity)].blocks.some((part) => part.pairs[pair] !== undefined);

/** All numbers of a block: of the selectors, then layer, then column; null where the file does not have the pair. */
function numbers(which, at, pair, end = "mean") {
  const key = `${which} ${at} ${pair} ${end}`;
  if (!unpacked.has(key)) unpacked.set(key, computed(which, at, pair, end));
  return unpacked.get(key);
}

function computed(which, at, pair, end) {
  const entry = map.quantities[which];
  if (pair < 0) return unpack(entry.blocks[at][end]);
  if (entry.of === undefined) {
    const text = entry.blocks[at].pairs[pair];
    return text === undefined ? null : unpack(text);
  }
  const own = numbers(entry.of, at, pair);
  return own && own.map((value) => value / (entry.totals[pair] ?? NaN));
}

/** Where a layer and a column, as they are numbered in the block, are among its numbers. */
function place(layer, column, of = block()) {
  let start = 0;
  map.selectors.forEach((selector, i) => { start = start * selector.labels.length + state.chosen[i]; });
  return (start * of.layers.length + layer) * of.columns.length + column;
}

function valueAt(layer, column, pair = state.pair, end = "mean") {
  const found = numbers(state.quantity, state.block, pair, end);
  return found ? found[place(layer, column)] : NaN;
}

/** Rows of numbers, layer by layer. */
function table(end = "mean") {
  return block().layers.map((_, layer) => block().columns.map((_, column) => valueAt(layer, column, state.pair, end)));
}

/** The ends of the colours, of this map or of all sites and choices together; symmetric about a middle. */
function scaleOf() {
  const everywhere = state.oneScale ? map.blocks.map((_, i) => numbers(state.quantity, i, state.pair)) : [table().flat()];
  let low = Infinity;
  let high = -Infinity;
  for (const found of everywhere) {
    for (const value of found || []) {
      if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
    }
  }
  if (low > high) [low, high] = [0, 1];
  const { middle } = quantity();
  if (middle === null) return { low, high: high > low ? high : low + 1, middle };
  const reach = Math.max(Math.abs(low - middle), Math.abs(high - middle)) || 1;
  return { low: middle - reach, high: middle + reach, middle };
}

/** The cell furthest from the middle among some blocks, and under which choices it is. */
function strongestCell(blocks = [state.block]) {
  let best = { far: -1, block: state.block, layer: 0, column: 0, chosen: state.chosen };
  for (const at of blocks) {
    const found = numbers(state.quantity, at, state.pair) || [];
    const [layers, columns] = [map.blocks[at].layers.length, map.blocks[at].columns.length];
    found.forEach((value, i) => {
      const far = Math.abs(value - (quantity().middle ?? 0));
      if (!(far > best.far)) return;
      let rest = Math.floor(i / (layers * columns));
      const chosen = map.selectors.map(() => 0);
      for (let k = chosen.length - 1; k >= 0; k--) {
        chosen[k] = rest % map.selectors[k].labels.length;
        rest = Math.floor(rest / map.selectors[k].labels.length);
      }
      best = { far, block: at, layer: Math.floor(i / columns) % layers, column: i % columns, chosen };
    });
  }
  const { far, ...cell } = best;
  return cell;
}

/** What a column of a block is called on the axis. */
function columnName(column, of = block()) {
  const at = of.columns[column];
  if (map.across === "position" || map.across === "key") return map.places ? map.places.names[at] : map.columns[at];
  return map.columns[at];
}

const columnLabel = (column, of = block()) => map.columns[of.columns[column]];

/** A row of the tables that say what a place is, in a pair. */
const told = (table, name, pair) => table[name] && table[name].rows[table[name].of[pair]];

/** Token, role or modality of a place: of a pair, or what the kept pairs that have it agree on. */
function described(table, name, at, pair) {
  if (!table || !table[name]) return "";
  const word = (i) => table.strings[told(table, name, i)[at]];
  if (pair >= 0) return word(pair);
  const found = new Set(data.pairs.flatMap((record, i) => (record.kept && word(i) ? [word(i)] : [])));
  if (found.size <= 1) return [...found].join("");
  return `differs by pair: ${[...found].slice(0, 4).join(", ")}${found.size > 4 ? ", …" : ""}`;
}
