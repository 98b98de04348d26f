"""What a page would fetch from another host when a browser opens it."""

import re
from html.parser import HTMLParser

FETCHED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "object": "data",
}


class Page(HTMLParser):
    """Tags with their attributes, and what stands in style sheets."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.styles, self._inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.styles += data if self._inside == "style" else ""

    def all(self, tag):
        return [about for name, about in self.tags if name == tag]


def outside_references(text):
    """List script, link, image and style-sheet addresses of other hosts."""
    page = Page(text)
    found = [about.get(FETCHED[tag]) or "" for tag, about in page.tags if tag in FETCHED]
    found += re.findall(r"(?:@import\s+|url\()[\"']?([^\"')\s]+)", page.styles)
    return [one for one in found if re.match(r"(https?:)?//", one)]
