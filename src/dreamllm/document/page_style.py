"""The style sheet of an exported page: readable in light and dark, on a phone and on paper, no web fonts."""

PAGE_CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --ink: #22201c; --soft: #6d675d; --line: #e4dfd5; --card: #ffffff;
  --user: #e6eefb; --assistant: #ffffff; --system: #f3efe6; --accent: #3b5bb5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16171a; --ink: #e8e6e1; --soft: #9c988f; --line: #303238; --card: #1e2024;
    --user: #22304a; --assistant: #1e2024; --system: #26241f; --accent: #9db5f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: clamp(1.25rem, 5vw, 4rem) clamp(1rem, 4vw, 2rem);
  background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.65 Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "DejaVu Serif", serif;
  overflow-wrap: anywhere;
}
main, header.page { max-width: 44rem; margin: 0 auto; }
header.page { border-bottom: 1px solid var(--line); margin-bottom: 2rem; }
h1, h2, .who, details, table {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.75rem; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.15rem; line-height: 1.35; margin: 0 0 1rem; }
p { margin: 0 0 1em; white-space: pre-line; }
article.document { margin: 0 0 2.5rem; }
main.many > article.document {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.5rem;
}
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.25rem 0; }
figure { margin: 0; max-width: 100%; }
figure img {
  display: block; max-width: 100%; height: auto;
  border-radius: 10px; border: 1px solid var(--line); background: #ffffff;
}
img.small { image-rendering: pixelated; }
.turn { border-radius: 16px; padding: 0.9rem 1.15rem; margin: 0 0 1rem; border: 1px solid var(--line); }
.turn > :last-child { margin-bottom: 0; }
.turn.user { background: var(--user); margin-left: clamp(0rem, 10vw, 5rem); border-bottom-right-radius: 4px; }
.turn.assistant {
  background: var(--assistant); margin-right: clamp(0rem, 5vw, 2.5rem); border-bottom-left-radius: 4px;
}
.turn.system { background: var(--system); color: var(--soft); font-size: 0.95rem; }
.who {
  font-size: 0.74rem; font-weight: 650; letter-spacing: 0.06em; text-transform: uppercase;
  color: var(--accent); margin: 0 0 0.4rem;
}
details { font-size: 0.82rem; color: var(--soft); margin-top: 1.25rem; }
summary { cursor: pointer; }
pre {
  overflow-x: auto; padding: 0.75rem; line-height: 1.45;
  border: 1px solid var(--line); border-radius: 8px;
}
section.extra { margin: 0 0 2.5rem; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.4rem 0.9rem 0.4rem 0; border-bottom: 1px solid var(--line); }
@media print {
  body { padding: 0; }
  .turn, figure { break-inside: avoid; }
}
"""
