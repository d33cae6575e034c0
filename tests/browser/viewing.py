"""Looking at a report in a browser: what is drawn, what is said, what was asked of the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

SETTLED = "return !document.getElementById('explorer') || !!document.getElementById('map')._fullLayout"

LABELLED = "return !!document.querySelector('#map .hovertext')"


def shown(value: float, unit: str = "") -> str:
    """A number as the page writes it."""
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e6):
        text = re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{value:.2e}")
    else:
        text = f"{float(f'{value:.4g}'):.10f}".rstrip("0").rstrip(".")
    return text.replace("-", "\u2212") + (f"\u202f{unit}" if unit else "")


class View:
    """A page in the browser, of a size and with a colour scheme."""

    def __init__(self, driver: Chrome, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        self.driver = driver
        driver.execute_cdp_cmd("Network.enable", {})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.scheme(scheme)
        for kind in ("browser", "performance"):
            driver.get_log(kind)
        driver.get(path.absolute().as_uri())
        WebDriverWait(driver, 20).until(lambda d: d.execute_script(SETTLED))

    def scheme(self, name: str) -> None:
        """Ask for light or dark, and for nothing to glide."""
        wanted = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
        features = [{"name": feature, "value": value} for feature, value in wanted.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The text of every element that a selector finds, white space made one blank."""
        text = "e.textContent.replace(/[ \\n]+/g, ' ').trim()"
        return self.run(f"return [...document.querySelectorAll(arguments[0])].map((e) => {text})", selector)

    def errors(self) -> list[str]:
        """What the console says is wrong."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> Iterator[str]:
        """Addresses that the page asked for since the last look, data links left out."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                url = message["params"].get("request", message["params"])["url"]
                if not url.startswith("data:"):
                    yield url

    def choose(self, control: str, words: str) -> None:
        """Choose what is called so in one of the map's selects."""
        Select(self.one(f'[data-control="{control}"]')).select_by_visible_text(words)

    def options(self, control: str) -> list[str]:
        return [option.text for option in Select(self.one(f'[data-control="{control}"]')).options]

    def drawn(self) -> list[list[float | None]]:
        """The numbers of the drawn map, layer by layer."""
        return self.run(
            "return document.getElementById('map').data[0].z.map((row) => [...row].map((v) => isNaN(v) ? null : v))"
        )

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place of the map, in the units of its axes."""
        self.run("document.getElementById('map').scrollIntoView({block: 'center', behavior: 'instant'})")
        left, top = self.run(
            "const map = document.getElementById('map'), box = map.getBoundingClientRect(), size = map._fullLayout;"
            "return [box.left + size.xaxis._offset + size.xaxis.d2p(arguments[0]),"
            "        box.top + size.yaxis._offset + size.yaxis.d2p(arguments[1])]",
            x,
            y,
        )
        for x_, y_, there in ((1, 1, False), (left, top, True)):  # away first: the label of before must be gone
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x_, "y": y_})
            WebDriverWait(self.driver, 5, 0.05).until(lambda d, there=there: d.execute_script(LABELLED) == there)

    def hovered(self) -> str:
        """What the label at the mouse says."""
        return " ".join(self.texts("#map .hovertext text"))

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()
