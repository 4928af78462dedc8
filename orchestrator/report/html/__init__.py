"""An experiment as one page to hand on; see `page.html_page`. matplotlib, which takes seconds to load, is imported by it."""
