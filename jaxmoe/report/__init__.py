"""The numbers of a run (metrics.json) and the page that shows them (index.html)."""
