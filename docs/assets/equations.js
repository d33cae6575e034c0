// Sets the equations that arithmatex has marked, once the page is there.
document.addEventListener("DOMContentLoaded", () => {
  for (const marked of document.querySelectorAll(".arithmatex")) {
    const display = marked.textContent.trim().startsWith("\\[");
    const source = marked.textContent.trim().replace(/^\\[[(]|\\[\])]$/g, "");
    katex.render(source, marked, { displayMode: display, throwOnError: true });
  }
});
