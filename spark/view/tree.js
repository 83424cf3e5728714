"use strict";
// the drawn tree, the budget timeline under it and the panel of the selected node

const GAP = { leaf: 26, left: 28, right: 72, top: 16, timeline: 92 };
const TURN = { least: 26, most: 60 };

/** Return a colour between the CSS colours `from` and `to`, `share` in [0, 1] of the way. */
function mix(from, to, share) {
  return `color-mix(in srgb, var(${to}) ${Math.round(100 * Math.min(1, share))}%, var(${from}))`;
}

/** Return node -> colour for `mode` "entropy" or "advantage", and the largest value shown. */
function nodeColours(tree, mode) {
  if (mode === "entropy") {
    const top = Math.max(0.05, ...tree.nodes.map((node) => node.entropy ?? 0));
    return { top, of: (node) => (node.entropy === null ? "var(--card)" : mix("--cold", "--hot", node.entropy / top)) };
  }
  const top = Math.max(0.05, ...tree.nodes.map((node) => Math.abs(node.advantage ?? 0)));
  const of = (node) => {
    if (node.entropy === null || node.advantage === null) return "var(--card)";
    return mix("--cold", node.advantage < 0 ? "--minus" : "--plus", Math.abs(node.advantage) / top);
  };
  return { top, of };
}

/** Return children lists, x in turns (the prompt is 0) and y in leaves of every node. */
function layout(tree) {
  const children = tree.nodes.map(() => []);
  const x = [];
  tree.nodes.forEach((node, index) => {
    if (node.parent === null) return void (x[index] = 0);
    children[node.parent].push(index);
    // a turn that was split in its middle shares the room up to the next turn
    const from = x[node.parent];
    x[index] = node.turn + 1 > from ? node.turn + 1 : from + (node.turn + 2 - from) / 2;
  });
  const y = [];
  let leaves = 0;
  const place = (start) => {
    const stack = [[start, false]];
    while (stack.length) {
      const [index, ready] = stack.pop();
      if (!children[index].length) y[index] = leaves++;
      else if (ready) y[index] = (y[children[index][0]] + y[children[index].at(-1)]) / 2;
      else stack.push([index, true], ...children[index].map((child) => [child, false]).reverse());
    }
  };
  place(0);
  return { children, x, y, leaves };
}

/** Return the indices from the root to `index`. */
function pathTo(tree, index) {
  const path = [];
  for (let cursor = index; cursor !== null; cursor = tree.nodes[cursor].parent) path.unshift(cursor);
  return path;
}

/** Draw `tree` into `parent`; `onNode(index, chosen)` is told of hovers and choices. */
function drawTree(parent, tree, mode, onNode) {
  parent.replaceChildren();
  const { children, x, y, leaves } = layout(tree);
  const colours = nodeColours(tree, mode);
  const lastTurn = Math.max(tree.horizon ?? 0, ...x);
  const fitting = (parent.clientWidth - GAP.left - GAP.right) / Math.max(1, lastTurn);
  const turnGap = Math.min(TURN.most, Math.max(TURN.least, fitting));
  const px = (index) => GAP.left + x[index] * turnGap;
  const py = (index) => GAP.top + y[index] * GAP.leaf;
  const floor = GAP.top + (leaves - 1) * GAP.leaf + 22;
  const width = GAP.left + lastTurn * turnGap + GAP.right;
  const svg = draw(parent, "svg", { width, height: floor + GAP.timeline, role: "group", "aria-label": `tree ${tree.name}` });

  tree.nodes.forEach((node, index) => {
    if (node.parent === null) return;
    const [ax, ay, bx, by] = [px(node.parent), py(node.parent), px(index), py(index)];
    const bend = (ax + bx) / 2;
    draw(svg, "path", { d: `M${ax},${ay}C${bend},${ay} ${bend},${by} ${bx},${by}`, class: "edge", "data-edge": index });
  });
  tree.nodes.forEach((node, index) => {
    const place = { class: "node", "data-node": index, tabindex: 0, role: "button", transform: `translate(${px(index)},${py(index)})` };
    const group = draw(svg, "g", { ...place, "aria-label": headline(node, index) });
    const radius = Math.min(9, 3.5 + Math.sqrt(node.sampled.length) * 0.9);
    draw(group, "circle", { r: radius, style: `fill: ${colours.of(node)}` });
    if (node.trigger) draw(group, "circle", { r: radius + 3.5, class: "ring" });
    draw(group, "title", {}, `${headline(node, index)}\n${plainText(node)}`);
    if (!children[index].length) {
      const won = node.total_reward > 0;
      draw(group, "text", { x: radius + 6, y: 4, class: won ? "won" : "" }, `${won ? "✓" : "✗"} ${show(node.total_reward)}`);
    }
    group.addEventListener("mouseenter", () => onNode(index, false));
    group.addEventListener("mouseleave", () => onNode(null, false));
    group.addEventListener("click", () => onNode(index, true));
    group.addEventListener("keydown", (event) => {
      const next = { Enter: index, " ": index, ArrowLeft: node.parent, ArrowRight: children[index][0] }[event.key];
      if (next === undefined || next === null) return;
      event.preventDefault();
      onNode(next, true);
      svg.querySelector(`[data-node="${next}"]`).focus();
    });
  });
  drawTimeline(svg, tree, children, (turn) => GAP.left + turn * turnGap, Math.ceil(lastTurn), floor);
  return colours.top;
}

/** Draw, over the same turns as the tree above, the forks made and the leaves in use. */
function drawTimeline(svg, tree, children, px, turns, top) {
  const height = 44;
  const forks = Array(turns + 1).fill(0);
  tree.nodes.forEach((node, index) => {
    if (children[index].length > 1) forks[Math.max(0, node.turn + 1)] += children[index].length - 1;
  });
  const used = [];
  forks.reduce((sum, value, turn) => (used[turn] = sum + value), 1);
  const full = Math.max(tree.leaf_budget ?? 0, used.at(-1), 2);
  const py = (value) => top + 20 + height - (value / full) * height;
  draw(svg, "text", { x: GAP.left - 14, y: top + 6, class: "strong" }, "leaves in use and forks by turn");
  draw(svg, "line", { x1: px(0), x2: px(turns), y1: py(0), y2: py(0), class: "axis" });
  if (tree.leaf_budget) {
    draw(svg, "line", { x1: px(0), x2: px(turns), y1: py(tree.leaf_budget), y2: py(tree.leaf_budget), class: "budget" });
    draw(svg, "text", { x: px(turns) + 6, y: py(tree.leaf_budget) + 4 }, `budget ${tree.leaf_budget}`);
  }
  let line = `M${px(0)},${py(used[0])}`;
  forks.forEach((count, turn) => {
    if (turn) line += `H${px(turn)}V${py(used[turn])}`;
    if (count) {
      const bar = draw(svg, "rect", { x: px(turn) - 5, y: py(count), width: 10, height: py(0) - py(count), class: "bar" });
      draw(bar, "title", {}, `turn ${turn}: ${count} more leaves`);
    }
    if (turn && (turn % 5 === 0 || turn === 1)) {
      draw(svg, "text", { x: px(turn), y: py(0) + 14, "text-anchor": "middle" }, String(turn));
    }
  });
  draw(svg, "path", { d: line, class: "leaves" });
  draw(svg, "text", { x: px(0), y: py(0) + 14, "text-anchor": "middle" }, "prompt");
}

/** Return one line about `node`. */
function headline(node, index) {
  const parts = [`node ${index}`, node.turn < 0 ? "prompt" : `turn ${node.turn + 1}`];
  parts.push(`${node.sampled.length} sampled of ${node.tokens.length} tokens`);
  if (node.entropy !== null) parts.push(`entropy ${show(node.entropy)} nats a token`, `log p ${show(node.logprob)}`);
  if (node.advantage !== null && node.entropy !== null) parts.push(`advantage ${show(node.advantage)}`);
  if (node.trigger) parts.push(`branches on ${node.trigger}`);
  if (node.reward) parts.push(`reward ${show(node.reward)}`);
  if (node.invalid) parts.push("invalid action");
  if (node.done) parts.push("end");
  return parts.join(" · ");
}

/** Return the node's text without colours. */
function plainText(node) {
  return node.tokens.map((piece) => DATA.pieces[piece]).join("").trim();
}

/** Show the nodes of `path` in the panel, the last of them in full. */
function drawNode(parent, tree, path) {
  parent.replaceChildren();
  const chosen = path.at(-1);
  add(parent, "h3", "", headline(tree.nodes[chosen], chosen));
  for (const index of path) {
    const node = tree.nodes[index];
    const text = add(parent, "p", "text");
    let given = "";
    const flush = () => {
      if (given) add(text, "span", "given", given);
      given = "";
    };
    const drawn = new Map(node.sampled.map((offset, place) => [offset, place]));
    node.tokens.forEach((piece, offset) => {
      const place = drawn.get(offset);
      if (place === undefined) return void (given += DATA.pieces[piece]);
      flush();
      const token = add(text, "span", "token", DATA.pieces[piece]);
      const [entropy, logprob, kept] = [node.entropies[place], node.logprobs[place], node.kept[place]];
      token.style.background = `color-mix(in srgb, var(--hot) ${Math.round(Math.min(1, entropy / DATA.hot) * 60)}%, transparent)`;
      token.title = `entropy ${show(entropy)} nats · log p ${show(logprob)} · log kept mass ${show(kept)}`;
    });
    flush();
  }
}
