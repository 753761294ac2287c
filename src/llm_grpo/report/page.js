// The viewer of completions. A model's words are only ever set as textContent.
"use strict";
const all = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("groups"), view = document.getElementById("group");
const form = document.getElementById("filter"), count = document.getElementById("count");
const SHOWN = 500; // entries of the list; the filter reaches the others
let found = [], place = 0;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const number = (value, digits = 2) => (value === null || value === undefined ? "-" : Number(value).toFixed(digits));
const kinds = {
  right: (answers) => answers.some((a) => a.strict),
  wrong: (answers) => answers.some((a) => !a.lenient),
  unreadable: (answers) => answers.some((a) => !a.formatted),
  truncated: (answers) => answers.some((a) => a.truncated),
  equal: (answers) => answers.every((a) => a.reward === answers[0].reward),
};

function matches(group, wish) {
  const answers = group.completions;
  const between = (low, high) => (a) => a.reward !== null && (low === "" || a.reward >= +low) && (high === "" || a.reward <= +high);
  return (wish.first === "" || group.step >= +wish.first) && (wish.last === "" || group.step <= +wish.last)
    && ((wish.low === "" && wish.high === "") || answers.some(between(wish.low, wish.high)))
    && (!wish.kind || kinds[wish.kind](answers))
    && (!wish.text || [group.question, group.answer, ...answers.map((a) => a.completion)]
      .some((text) => text.toLowerCase().includes(wish.text.toLowerCase())));
}

function refresh() {
  const wish = Object.fromEntries(new FormData(form));
  found = all.filter((group) => matches(group, wish));
  list.replaceChildren(...found.slice(0, SHOWN).map((group, index) => {
    const right = group.completions.filter((a) => a.strict).length;
    const entry = element("li", `step ${group.step} · ${right}/${group.completions.length} right · ${group.id.split("/").pop()}`);
    entry.title = group.id;
    entry.id = `group-${index}`;
    entry.setAttribute("role", "option");
    entry.addEventListener("click", () => show(index));
    return entry;
  }));
  const more = found.length > SHOWN ? `, the first ${SHOWN} are listed` : "";
  count.textContent = `${found.length} groups match${more}.`;
  if (found.length) show(0); else view.replaceChildren();
}

function show(index) {
  place = Math.max(0, Math.min(index, Math.min(found.length, SHOWN) - 1));
  for (const each of list.children) each.setAttribute("aria-selected", String(each.id === `group-${place}`));
  list.setAttribute("aria-activedescendant", `group-${place}`);
  const entry = list.children[place], end = entry.offsetTop + entry.offsetHeight; // in the list alone: the page stays
  if (entry.offsetTop < list.scrollTop) list.scrollTop = entry.offsetTop;
  else if (end > list.scrollTop + list.clientHeight) list.scrollTop = end - list.clientHeight;
  const group = found[place];
  const question = element("h4", group.question);
  question.dir = "auto";
  const gold = element("p", `step ${group.step}, ${group.id}. Right: ${group.answer}`);
  const answers = element("div", undefined, "answers");
  answers.append(...group.completions.map(answer));
  view.replaceChildren(question, gold, answers, again(group));
}

function answer(row) {
  const kind = row.strict ? "right" : row.lenient ? "loose" : "wrong";
  const said = row.strict ? "right" : row.lenient ? "right, badly formatted" : "wrong";
  const box = element("div", undefined, `answer ${kind}`);
  const cut = row.truncated ? ", cut at the token limit" : "";
  box.append(element("b", `${said}${cut}`));
  box.append(element("div", `reward ${number(row.reward)}  advantage ${number(row.advantage)}  ${row.tokens} tokens`, "numbers"));
  const each = Object.entries(row.rewards).map(([name, value]) => `${name.replace("_reward_func", "")} ${number(value)}`);
  box.append(element("div", each.join("  "), "numbers"));
  const text = element("pre", row.completion);
  text.dir = "auto";
  box.append(text, element("div", `read: ${row.extracted === null ? "nothing" : row.extracted}`, "numbers"));
  return box;
}

function again(group) { // the same prompt through training
  const others = all.filter((other) => other.id === group.id);
  if (others.length < 2) return element("p", "This prompt stands once among the groups shown.", "numbers");
  const line = element("p", "The same prompt through training: ");
  for (const other of others) {
    const right = other.completions.filter((a) => a.strict).length;
    const button = element("button", `step ${other.step}: ${right}/${other.completions.length}`);
    button.disabled = other === group;
    button.addEventListener("click", () => {
      form.reset();
      refresh();
      show(found.indexOf(other));
    });
    line.append(button, " ");
  }
  return line;
}

if (form) {
  form.addEventListener("input", refresh);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(refresh));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
      ?? (event.target === list ? { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key] : undefined);
    if (step === undefined || !found.length) return;
    event.preventDefault();
    show(place + step);
  });
  refresh();
}
