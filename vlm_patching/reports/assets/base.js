// What all other scripts use: the data, elements made of texts alone, numbers as texts, colours of the theme.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** An element; children that are strings become text, never markup. */
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** Float32 numbers that were packed as base64. */
function unpack(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

/** A number with four digits; "not run" where there is none. */
function shown(value, unit = "") {
  if (value === null || value === undefined || Number.isNaN(value)) return "not run";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replaceAll("-", "\u2212") + (unit ? `\u202f${unit}` : "");
}

/** A text in the little markup language that the plotting library reads: nothing in it is markup. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const shortened = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 48rem)");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Red, green, blue of "#rrggbb". */
const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** Black or white, whichever is easier to read on a tint over a panel. */
function inkOn(tinted) {
  const [r, g, b, a] = tinted === "transparent" ? [0, 0, 0, 0] : tinted.match(/[\d.]+/g).map(Number);
  const mixed = channels(color("panel")).map((below, i) => ([r, g, b][i] * a + below * (1 - a)) / 255);
  const [x, y, z] = mixed.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.18 ? "#000000" : "#ffffff";
}

/** The colour of a value between the ends of a scale whose middle lets what is behind it through. */
function tint(value, scale) {
  if (Number.isNaN(value)) return "transparent";
  if (scale.middle === null) {
    const share = scale.high > scale.low ? (value - scale.low) / (scale.high - scale.low) : 1;
    return `rgba(${channels(color("low")).join(",")},${(0.75 * Math.sqrt(Math.max(0, share))).toFixed(3)})`;
  }
  const share = Math.max(-1, Math.min(1, (value - scale.middle) / (scale.high - scale.middle || 1)));
  return `rgba(${channels(color(share < 0 ? "low" : "high")).join(",")},${(0.8 * Math.sqrt(Math.abs(share))).toFixed(3)})`;
}
