"""How does the page look? One style sheet, no network, readable in print."""

STYLE = """
:root {
  --ink: #1d2129; --muted: #6d7480; --hairline: #e3e5e9; --paper: #ffffff; --wash: #f6f7f8;
  --good: #2f7d5b; --bad: #b5433a; --warn-paper: #fdf5e3; --warn-ink: #7a5a12;
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1000px; padding: 48px 32px 72px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 "Helvetica Neue", Helvetica, Arial, sans-serif; font-variant-numeric: tabular-nums;
}
h1 { font-size: 27px; line-height: 1.2; font-weight: 600; letter-spacing: -0.01em; margin: 0 0 6px; }
h2 {
  font-size: 17px; font-weight: 600; margin: 46px 0 4px; padding-top: 14px; border-top: 1px solid var(--hairline);
}
p { margin: 4px 0 14px; max-width: 46em; }
.lead, .note { color: var(--muted); max-width: none; }
.note { font-size: 13px; }
.banner {
  background: var(--warn-paper); color: var(--warn-ink); border-radius: 6px; padding: 10px 16px; margin: 20px 0;
  font-size: 14px;
}
.facts { display: flex; flex-wrap: wrap; gap: 4px 36px; margin: 22px 0 0; padding: 0; list-style: none; }
.facts li { min-width: 90px; }
.facts b { display: block; font-size: 22px; font-weight: 600; line-height: 1.25; }
.facts span { color: var(--muted); font-size: 12.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 12px 0 6px; font-size: 13.5px; }
th {
  text-align: right; font-weight: 500; color: var(--muted); font-size: 12px; padding: 4px 10px 6px;
  vertical-align: bottom; border-bottom: 1px solid var(--hairline); white-space: nowrap;
} td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--hairline); vertical-align: top;
white-space: nowrap; } th:first-child, td:first-child { text-align: left; padding-left: 0; } td.text, th.text {
text-align: left; white-space: normal; } td small { display: block; color: var(--muted); font-size: 11.5px;
line-height: 1.3; } td.cell { text-align: center; border-bottom-color: var(--paper); border-left: 1px solid
var(--paper); } .dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; }
.good { color: var(--good); } .bad { color: var(--bad); } .muted { color: var(--muted); } figure { margin: 14px
0 8px; } figure svg { width: 100%; height: auto; display: block; } figcaption { color: var(--muted); font-size:
12.5px; margin-top: 4px; max-width: 60em; } video { width: 100%; display: block; cursor: pointer; } .film {
margin: 20px 0 26px; } .film p { margin: 0 0 8px; font-size: 13.5px; } details { margin: 10px 0; } summary {
cursor: pointer; color: var(--muted); font-size: 13.5px; } th[data-sort] { cursor: pointer; } dl { display:
grid; grid-template-columns: max-content 1fr; gap: 5px 22px;
margin: 12px 0; font-size: 13.5px; } dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 14px; font-weight: 600; margin: 16px 0 0; }
.matrices { display: flex; flex-wrap: wrap; gap: 0 56px; } .matrices > div { max-width: 100%; }
table.matrix { width: auto; } table.matrix th { white-space: normal; }
table.matrix th small { display: block; font-size: 11.5px; font-weight: 400; }
table.matrix td, table.matrix th { padding-right: 8px; padding-left: 14px; }
table.matrix :is(th, td):first-child, table.tasks :is(th, td):first-child {
  position: sticky; left: 0; background: var(--paper); padding-left: 0;
}
td.better { color: var(--good); font-weight: 600; } td.worse { color: var(--bad); font-weight: 600; }
td small { font-weight: 400; } table.tasks { width: auto; } table.tasks .cell { text-align: center; padding: 5px 7px; }
code, pre { font: 12px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; } pre { background:
var(--wash); padding: 10px 14px; border-radius: 6px; overflow-x: auto; } @media print { body { padding: 0; }
details:not(.full) { display: none; }
details.full::details-content { content-visibility: visible; } h2, h3 { break-after: avoid; }
figure { break-inside: avoid; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, column) => {
    head.dataset.sort = "";
    head.onclick = () => {
      const down = head.dataset.sort !== "down";
      table.querySelectorAll("th").forEach((other) => { other.dataset.sort = ""; });
      head.dataset.sort = down ? "down" : "up";
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true });
      [...body.rows].sort((a, b) => (down ? order(a, b) : order(b, a))).forEach((row) => body.append(row));
    };
  });
}
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !target.dataset.paused) target.play(); else target.pause();
  }
}, { threshold: 0.4 });
for (const film of document.querySelectorAll("video")) {
  watcher.observe(film);
  film.onclick = () => {
    if (film.paused) { delete film.dataset.paused; film.play(); } else { film.dataset.paused = "1"; film.pause(); }
  };
}
"""
