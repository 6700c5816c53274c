"""Reports as pages: one HTML file each, which runs no script and asks nobody for anything."""
