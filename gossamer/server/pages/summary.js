// @ts-check
// What is explained, its value, and what the columns add up to.
import { element, isolate, short, signed } from "./text.js";

/** The value, beside the clean or the other one. */
export function drawValue(place, answer, state) {
  const { left, comparison } = answer;
  const title = element("h2");
  title.append(element("bdi", "", capital(left.target)));
  const at = element("p", "faint");
  at.append(`at position ${left.position}, after `, isolate("tok", left.tokens[left.position] ?? ""));
  if (comparison && !answer.edited) {
    const right = comparison.right;
    at.append(`; on the right at ${right.position}, after `, isolate("tok", right.tokens[right.position] ?? ""));
  }
  const list = element("dl", "numbers");
  const say = (name, value, text, note = "") => {
    const pair = element("div");
    const number = element("dd", "", text);
    if (note) number.title = note;
    number.dataset.value = String(value);
    number.dataset.name = name;
    pair.append(element("dt", "", name), number);
    list.append(pair);
    return number;
  };
  if (comparison && !answer.edited) {
    say("left", left.value, short(left.value)).className = "main";
    say("right", comparison.right.value, short(comparison.right.value)).className = "main";
    sign(say("left less right", comparison.difference, signed(comparison.difference)), comparison.difference);
  } else if (left.clean_value !== null) {
    say("with edits", left.value, short(left.value)).className = "main";
    say("clean", left.clean_value, short(left.clean_value));
    sign(say("change", left.change, signed(left.change)), left.change);
    if (left.estimate !== null) {
      const note = "what the clean run's gradient says of the change, to first order";
      sign(say("estimate", left.estimate, signed(left.estimate), note), left.estimate);
    }
  } else {
    say("value", left.value, short(left.value)).className = "main";
  }
  if (answer.right && left.change !== null) {
    sign(say("left, by edits", left.change, signed(left.change)), left.change);
    sign(say("right, by edits", answer.right.change, signed(answer.right.change)), answer.right.change);
  }
  const sums = element("div", "sums");
  for (const sum of left.sums) sums.append(sumOf(sum));
  place.replaceChildren(title, at, list, sums, cost(answer, state));
}

function capital(text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function sign(node, value) {
  if (value) node.classList.add(value < 0 ? "negative" : "positive");
}

/** What a column adds up to: the server's sentence, and how much of it is listed. */
function sumOf(sum) {
  const line = element("p", sum.adds_up ? "sum whole" : "sum");
  line.dataset.column = sum.column;
  line.append(element("bdi", "", sum.sentence));
  const listed = element("span", "faint", ` Listed ${short(sum.shown)}, not listed ${short(sum.not_shown)}.`);
  line.append(listed);
  return line;
}

function cost({ left }, state) {
  const hold = left.hold.length ? `${left.hold.join(" and ")} held` : "nothing held";
  const memory = left.peak_bytes ? `, ${(left.peak_bytes / 2 ** 20).toFixed(0)} MiB at most` : "";
  const seconds = `${left.seconds.toFixed(left.seconds < 10 ? 2 : 0)} s`;
  return element("p", "faint", `${capital(hold)}; ${state.pairs ? "heads by key" : "heads by query"}; ${seconds}${memory}.`);
}
