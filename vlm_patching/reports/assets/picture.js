// Pictures with what is painted on them, and prompts with what is marked in them.

/** Which pair stands for a choice: itself, or for the mean the first kept pair, one with a picture where there is one. */
function pairShown(pair) {
  if (pair >= 0) return pair;
  const kept = data.pairs.map((record, i) => (record.kept ? i : -1)).filter((i) => i >= 0);
  return kept.find((i) => pictureOf(i)) ?? kept[0] ?? 0;
}

/** A picture of a prompt that is in the file; null where there is none. */
function pictureOf(pair, run = 0, number = 0) {
  const prompt = data.pairs[pair].prompts[run];
  const picture = prompt && data.pictures[prompt.pictures[number]];
  return picture && picture.link ? picture : null;
}

/** A picture, patches of it tinted, boxes around parts of it; all in its own pixels. */
function painted(picture, said, patches = [], boxes = []) {
  const [width, height] = picture.size;
  const line = Math.max(width, height) / 130;
  const image = drawn("image", { href: picture.link, width, height, class: pixelated(picture) });
  const veil = patches.length > 1 ? drawn("rect", { width, height, fill: "#ffffff", "fill-opacity": 0.35 }) : null;
  const tints = patches.map(({ box: [x0, y0, x1, y1], fill }) =>
    drawn("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill }));
  const frames = boxes.flatMap(({ box: [x0, y0, x1, y1], dashed }) => ["#ffffff", "#000000"].map((stroke, i) =>
    drawn("rect", {
      x: x0 + line, y: y0 + line, width: Math.max(line, x1 - x0 - 2 * line), height: Math.max(line, y1 - y0 - 2 * line),
      fill: "none", stroke, "stroke-width": (i ? 1 : 2.4) * line, "stroke-dasharray": i && dashed ? 4 * line : null,
    })));
  const view = { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said };
  return drawn("svg", view, image, veil, tints, frames);
}

const pixelated = (picture) => (Math.max(...picture.size) < 200 ? "pixels" : null);

/** A prompt's text, its spans on coloured ground; `legend` says which is which. */
function markedPrompt(parts, here = "") {
  const names = [...new Set(parts.flatMap(([, spans]) => spans))];
  const ground = (name) => `background:var(--span-${(names.indexOf(name) % 5) + 1})`;
  const line = element("p", { class: "prompt" }, parts.map(([text, spans]) => (spans.length
    ? element("mark", { style: ground(spans[0]), title: spans.join(", "), class: spans.includes(here) ? "here" : null }, text)
    : text)));
  const legend = element("ul", { class: "legend", "aria-label": "Spans" }, names.map((name) => {
    const words = parts.filter(([, spans]) => spans.includes(name)).map(([text]) => text).join("");
    return element("li", {}, element("span", { class: "swatch", style: ground(name) }), `${name}: ${words}`);
  }));
  return names.length ? [line, legend] : [line];
}
