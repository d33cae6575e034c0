// What happens once, when the page is there.

/** In a notebook's frame a link to a part of the page would load the notebook: go there by hand. */
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  const target = link && byId(link.getAttribute("href").slice(1));
  if (!target) return;
  event.preventDefault();
  target.scrollIntoView();
  target.focus({ preventScroll: true });
});

for (const button of document.querySelectorAll("button.copy")) {
  button.setAttribute("aria-label", `Copy: ${button.dataset.copy.replaceAll("-", " ")}`);
  button.addEventListener("click", async () => {
    const source = byId(button.dataset.copy);
    getSelection().selectAllChildren(source);
    const copied = navigator.clipboard ? await navigator.clipboard.writeText(source.textContent).then(() => true, () => false) : false;
    button.textContent = copied ? "Copied" : "Selected";
  });
}

if (map && map.blocks.length) {
  startExplorer();
  byId("js-plotly-tester")?.setAttribute("aria-hidden", "true"); // the library measures texts in it
}
if (data.pairs.length) startPairs();
