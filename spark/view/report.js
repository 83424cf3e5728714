"use strict";
// wires the page: curves, the choice of tree and colour, hover and click on nodes;
// report.html#tree=2&node=5&colour=advantage opens the page at that node

const DATA = JSON.parse(document.getElementById("data").textContent);

function main() {
  drawCharts(document.getElementById("curves"), DATA.charts);
  const [pick, colour, whole] = ["pick", "colour", "whole"].map((id) => document.getElementById(id));
  const [canvas, panel] = ["tree", "node"].map((id) => document.getElementById(id));
  DATA.trees.forEach((tree, index) => add(pick, "option", "", tree.name).setAttribute("value", index));
  if (!DATA.trees.length) return void add(canvas, "p", "note", "No tree is recorded yet.");
  const asked = new URLSearchParams(location.hash.slice(1));
  let chosen = 0;

  const look = (index) => {
    const tree = DATA.trees[pick.value];
    const path = pathTo(tree, index);
    drawNode(panel, tree, whole.checked ? path : [index]);
    for (const edge of canvas.querySelectorAll(".edge")) {
      edge.classList.toggle("on", path.includes(Number(edge.dataset.edge)));
    }
    for (const node of canvas.querySelectorAll(".node")) {
      node.classList.toggle("on", Number(node.dataset.node) === index);
    }
  };
  const onNode = (index, choose) => {
    if (choose) chosen = index;
    look(index ?? chosen);
  };
  const redraw = () => {
    const tree = DATA.trees[pick.value];
    const top = drawTree(canvas, tree, colour.value, onNode);
    document.getElementById("tree-facts").textContent = tree.facts.join(" · ");
    drawLegend(document.getElementById("legend"), colour.value, top);
    look(chosen);
  };
  const start = (node) => {
    const { nodes } = DATA.trees[pick.value];
    const fork = nodes.findIndex((candidate) => candidate.trigger);
    chosen = nodes[node] ? Number(node) : Math.max(fork, Math.min(1, nodes.length - 1));
    redraw();
  };
  pick.addEventListener("change", () => start(null));
  colour.addEventListener("change", redraw);
  whole.addEventListener("change", () => look(chosen));
  pick.value = String(DATA.trees[asked.get("tree")] ? asked.get("tree") : DATA.first);
  if (asked.get("colour") === "advantage") colour.value = "advantage";
  start(asked.get("node"));
}

/** Show the scale of the colours, up to `top`. */
function drawLegend(parent, mode, top) {
  parent.replaceChildren();
  const entropy = mode === "entropy";
  const stops = entropy ? "var(--cold), var(--hot)" : "var(--minus), var(--cold), var(--plus)";
  add(parent, "span", "", entropy ? "0" : show(-top));
  add(parent, "i").style.background = `linear-gradient(to right, ${stops})`;
  add(parent, "span", "", `${entropy ? "" : "+"}${show(top)}${entropy ? " nats" : ""}`);
}

main();
