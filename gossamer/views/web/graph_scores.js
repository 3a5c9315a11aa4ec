// @ts-check
// What a set of pinned nodes explains, and the weights between groups of them. Plain arithmetic.
//
// Subgraph scores. The kept nodes are the pinned latents, the targets and what no SAE makes: tokens,
// position embeddings, biases. Of the inputs of a kept node, Ā[t,s] = |A[t,s]| / (all of its inputs),
// what comes from kept nodes flows on to them; all else is missed, be it from an error, a remainder, a
// latent that is not pinned, or an edge that the page does not have. With the influence I that runs
// back from the targets (w: how much each counts) along kept edges:
//     missed        Σ (1 − Σ_{kept s} Ā[t,s]) (I[t] + w[t])    over kept nodes t with inputs
//     completeness  1 − missed / (Σ (I + w) + missed)          over all kept nodes
//     replacement   Σ I / (Σ I + missed)                       over tokens and position embeddings

const GIVEN = ["token", "position", "bias"];
const MISSED = ["error", "remainder"];

/** Scores of a set of nodes, each null where nothing flows. */
export function scores(graph, pinned) {
  const kept = new Uint8Array(graph.n);
  for (let i = 0; i < graph.n; i++) {
    const kind = graph.kinds[i];
    const stays = pinned.has(i) || graph.weights[i] > 0 || GIVEN.includes(kind);
    kept[i] = stays && !MISSED.includes(kind) ? 1 : 0;
  }
  const flow = Float64Array.from(graph.weights);
  let [all, missed, tokens] = [0, 0, 0];
  for (const node of backwards(graph, kept)) {
    all += flow[node];
    if (graph.kinds[node] === "token" || graph.kinds[node] === "position") tokens += flow[node];
    if (flow[node] === 0 || !(graph.totals[node] > 0)) continue;
    let known = 0;
    for (const edge of graph.into(node)) {
      const source = graph.sources[edge];
      if (!kept[source]) continue;
      const part = Math.abs(graph.edgeWeights[edge]) / graph.totals[node];
      flow[source] += part * flow[node];
      known += part;
    }
    missed += Math.max(0, 1 - known) * flow[node]; // sums of float32 may pass 1 by a little
  }
  return {
    completeness: all > 0 ? 1 - missed / (all + missed) : null,
    replacement: tokens + missed > 0 ? tokens / (tokens + missed) : null,
  };
}

/** The kept nodes, each before all that have an edge into it. */
function backwards(graph, kept) {
  const left = new Int32Array(graph.n); // kept nodes that it goes into and that are not done yet
  for (let edge = 0; edge < graph.m; edge++) if (kept[graph.targets[edge]]) left[graph.sources[edge]]++;
  const ready = [];
  for (let i = 0; i < graph.n; i++) if (kept[i] && left[i] === 0) ready.push(i);
  const order = [];
  while (ready.length) {
    const node = ready.pop();
    order.push(node);
    for (const edge of graph.into(node)) {
      const source = graph.sources[edge];
      if (--left[source] === 0 && kept[source]) ready.push(source);
    }
  }
  return order;
}

/** Edges between groups of nodes, strongest first. The weight is the sum of the signed edges from a
 * member of the one to a member of the other; the share is that sum over the sizes of all that comes
 * into the target's members from outside of it.
 * @param {any} graph
 * @param {number[][]} groups nodes of each group, disjoint
 */
export function combined(graph, groups) {
  const of = new Map(groups.flatMap((nodes, group) => nodes.map((node) => [node, group])));
  const inside = groups.map(() => 0);
  const found = new Map();
  groups.forEach((nodes, target) => {
    for (const node of nodes) {
      for (const edge of graph.into(node)) {
        const source = of.get(graph.sources[edge]);
        if (source === target) inside[target] += Math.abs(graph.edgeWeights[edge]);
        if (source === undefined || source === target) continue;
        const key = source * groups.length + target;
        if (!found.has(key)) found.set(key, { source, target, weight: 0, edges: [] });
        const one = found.get(key);
        one.weight += graph.edgeWeights[edge];
        one.edges.push(edge);
      }
    }
  });
  const totals = groups.map((nodes, group) =>
    nodes.reduce((sum, node) => sum + graph.totals[node], 0) - inside[group]);
  return [...found.values()]
    .map((one) => ({ ...one, share: totals[one.target] > 0 ? one.weight / totals[one.target] : 0 }))
    .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
}
