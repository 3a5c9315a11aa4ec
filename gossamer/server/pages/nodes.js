// @ts-check
// Nodes by their ids: what to call them, their order in the model, what can be done to them.

const NODE = /^(.+)\/(\d+|error|bias|remainder)@(\d+)(?:<-(\d+))?$/;
const ABLATED = new Set(["embedding", "head", "pair", "neuron", "latent", "error"]);
const WAYS = {
  pair: ["q", "k", "qk", "v"],
  head: ["v"],
  neuron: ["pre"],
  latent: ["pre"],
};
const PARTS = ["hook_resid_pre", "attn", "hook_attn_out", "hook_resid_mid", "mlp", "hook_mlp_out", "hook_resid_post"];

/** Ways into a node, as sentences end. */
export const THROUGH = {
  q: "through the query",
  k: "through the key",
  qk: "through query and key",
  v: "through the value",
  pre: "before its activation",
};

/** The parts of a node's id; null for what is not one. */
export function parseNode(id) {
  const found = NODE.exec(id);
  if (!found) return null;
  const [, site, unit, position, key] = found;
  const block = /^blocks\.(\d+)\.(.+)$/.exec(site);
  return {
    site,
    unit: /^\d+$/.test(unit) ? Number(unit) : unit,
    position: Number(position),
    key: key === undefined ? null : Number(key),
    layer: block ? Number(block[1]) : null,
    part: block ? block[2] : site,
  };
}

/** A site for people: L3 resid_pre. */
export function siteName(site) {
  const [, layer, part] = /^blocks\.(\d+)\.(.+)$/.exec(site) ?? [];
  return part === undefined ? site : `L${layer} ${part.replace(/^(mlp\.)?hook_/, "$1")}`;
}

/** A short name for people, without its position. */
export function nodeName(id, kind) {
  const node = parseNode(id);
  if (!node) return id;
  const layer = node.layer === null ? "" : `L${node.layer} `;
  const part = node.part.replace("hook_", "").replace(".hook_", " ").replace(/^mlp\.post/, "mlp");
  if (kind === "embedding") return "embedding";
  if (kind === "position") return "position embedding";
  if (node.part === "attn.hook_z" && typeof node.unit === "number") return `${layer}head ${node.unit}`;
  if (node.part === "mlp.hook_post" && kind !== "latent" && typeof node.unit === "number") {
    return `${layer}neuron ${node.unit}`;
  }
  return `${layer}${part} ${node.unit}`;
}

/** What a node is, guessed from its id where no row says it. */
export function kindOf(id, rows) {
  const row = rows.find((each) => each.id === id);
  if (row) return row.kind;
  const node = parseNode(id);
  if (!node) return "";
  if (typeof node.unit === "string") return node.unit;
  if (node.part === "attn.hook_z") return node.key === null ? "head" : "pair";
  return node.part === "hook_embed" ? "embedding" : "latent";
}

/** The node at the corresponding position of another prompt. */
export function movedNode(id, shift) {
  const node = parseNode(id);
  if (!node || shift === 0) return id;
  const key = node.key === null ? "" : `<-${node.key + shift}`;
  return `${node.site}/${node.unit}@${node.position + shift}${key}`;
}

/** Where it stands in the forward pass, for sorting. */
export function nodeOrder(id) {
  const node = parseNode(id);
  if (!node) return [0, 0, 0, 0, 0];
  const place = PARTS.findIndex((part) => node.part === part || node.part.startsWith(`${part}.`));
  const layer = node.layer ?? (node.site.startsWith("hook_") ? -1 : 1e6);
  return [layer, place, typeof node.unit === "number" ? node.unit : 1e9, node.position, node.key ?? -1];
}

/** Whether an edit can take it away. */
export function canAblate(kind) {
  return ABLATED.has(kind);
}

/** The ways into it that an upstream table can take. */
export function waysInto(kind) {
  return WAYS[kind] ?? [];
}
