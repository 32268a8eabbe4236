"""The web page at `/`: its files, and the data of its machine view.

A file imports only what stands below it: routes, live, latencies, kept, files. The page needs nothing from other hosts and no build step; docs/page.md names the
libraries in static/vendor/, which scripts/vendor_page brings up to date.
"""
