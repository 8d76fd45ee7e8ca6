"""The page's style sheet: one column, system fonts, light and dark by the reader's own setting."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b222b; --soft: #5d6875; --line: #dde2e8; --card: #f5f7f9; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161c; --ink: #e8ecf0; --soft: #9aa5b1; --line: #2b333d; --card: #1a2028; --accent: #5db4e6;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 980px; margin: 0 auto; padding: 40px 24px 72px; }
.brand { color: var(--accent); font-weight: 700; margin: 0; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: .15em 0 .4em; text-wrap: balance; }
h2 { font-size: 1.3rem; margin: 2.2em 0 .4em; }
p { margin: .5em 0 1em; max-width: 50em; }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 0 0 1.8em; }
.card { background: var(--card); border-left: 5px solid var(--policy); border-radius: 8px; padding: 14px 18px; }
.card b { display: block; font-size: 2rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card small { display: block; color: var(--soft); line-height: 1.4; }
figure { margin: 0 0 1.2em; }
figcaption { margin-top: .5em; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
video { display: block; width: 100%; max-width: 800px; margin: 0 auto; border-radius: 10px; background: #12161c; }
.worlds { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 4px 24px; }
.worlds h3 {
  grid-column: 1 / -1; font-size: 1rem; margin: .8em 0 .3em; padding-top: .9em; border-top: 1px solid var(--line);
}
.worlds figure { max-width: 330px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 9px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-size: .85rem; line-height: 1.35; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; font-weight: 600; }
td:first-child::before {
  content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .55em; border-radius: 2px;
  background: var(--policy);
}
thead small { display: block; font-weight: 400; color: var(--soft); }
pre {
  background: var(--card); border-radius: 8px; padding: 14px 18px; overflow-x: auto; font-size: .88rem;
  line-height: 1.45;
}
details { margin: 1em 0; }
summary { cursor: pointer; font-weight: 600; }
footer {
  margin-top: 3em; padding-top: 1.2em; border-top: 1px solid var(--line); color: var(--soft); font-size: .92rem;
}
a { color: var(--accent); }
@media print { video { display: none; } }
"""
