"""What makes the site out of the package: generated pages, the hooks of mkdocs, and the code blocks that tests run."""
