"""The page in a real Chromium: looked at, used by mouse and by keyboard, narrow, dark, and beside other sites."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.driver.programs import Lab as Programs
from tests.driver.programs import echo_through
from tests.driver.test_up_page import find as find_page
from tests.driver.test_up_page import free_port, start
from tests.programs.browser import TOKEN, Elsewhere, Seen, Served
from tests.programs.homes import needs
from tests.twins.home import HOSTILE_NAME, SECRET_ADDRESS, TwinHome, link
from tunnel.cli.page import leader_of

pytestmark = [needs("chromium", "chromedriver"), pytest.mark.time_limit(300)]

# ------------------------------------------------------------ looked at


def test_it_shows_who_is_connected_how_and_why(seen: Seen, served: Served) -> None:
    seen.open_page(served)
    ben, office, anna = map(seen.card, ("ben", "office", "anna"))
    assert "direct" in ben.text
    assert SECRET_ADDRESS in ben.text
    assert "relayed" in office.text
    assert "both routers choose a new port" in office.text
    assert "not connected" in anna.text
    assert "127.0.0.1:2222" in ben.text
    assert "nas=192.168.1.5:445" in ben.text
    assert "2 connected" in seen.text()
    plots = ben.find_elements(By.CSS_SELECTOR, "svg[role=img]")
    seen.until(lambda: all("to" in str(each.get_attribute("aria-label")) for each in plots))
    names = [str(each.get_attribute("aria-label")) for each in plots]
    assert [name.split(",")[0] for name in names] == ["Round trip", "Lost", "Received", "Sent"]
    assert "23 ms" in names[0]
    seen.until(lambda: len(str(plots[2].find_element(By.CSS_SELECTOR, ".line").get_attribute("d")).split("L")) > 4)
    assert ben.find_elements(By.TAG_NAME, "output")[2].text == "150 kB/s"
    rows = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]
            for row in seen.driver.find_elements(By.CSS_SELECTOR, "#rooms tbody tr")]  # fmt: skip
    assert rows == [["me (you, made it)", "there", "10.77.1.1", "fd12::1"], ["ben", "there", "10.77.1.2", "fd12::2"],
                    ["anna", "away", "10.77.1.3", "fd12::3"]]  # fmt: skip
    assert "10.77.1.0/24" in seen.text()
    assert [each.text for each in office.find_elements(By.CSS_SELECTOR, ".servers li")] == [
        "203.0.113.2:24531 carries: the nearest to both sides, 12 ms from here, 14 ms from there",
        "203.0.113.1:24531 stands by: the next nearest, 11 ms from here, 31 ms from there",
    ]
    assert not ben.find_elements(By.CSS_SELECTOR, ".servers li")
    servers = seen.driver.find_elements(By.CSS_SELECTOR, "#servers li")
    assert [each.text for each in servers] == [
        "203.0.113.1:24531 is in use: it took over from another, 11 ms from here",
        "203.0.113.2:24531 is silent: it does not answer",
    ]
    assert "127.0.0.1:8080 there → 127.0.0.1:3000, at most 10.0 MB/s" in ben.text
    assert "127.0.0.1:8081 there → 127.0.0.1:3001, not yet" in ben.text
    seen.picture("light")
    seen.scheme("dark")
    seen.picture("dark")
    assert seen.console() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_its_ground(seen: Seen, served: Served, scheme: str) -> None:
    """A contrast of 4.5 (WCAG 2.2, 1.4.3)."""
    seen.scheme(scheme)
    seen.open_page(served)
    found = seen.run("""
        const number = (text) => text.match(/[0-9.]+/g).map(Number);
        const light = (text) => number(text).slice(0, 3).map((each) => each / 255)
            .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
            .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
        const ground = (element) => {
            const colour = getComputedStyle(element).backgroundColor;
            return colour === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : colour;
        };
        return [...document.querySelectorAll("body *")]
            .filter((each) => each.checkVisibility())
            .filter((each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
            .map((each) => [each.textContent, light(getComputedStyle(each).color), light(ground(each))]);
    """)
    assert len(found) > 40
    bad = [(text, (max(pair) + 0.05) / (min(pair) + 0.05)) for text, *pair in found]
    assert [each for each in bad if each[1] < 4.5] == []


def test_it_fits_a_narrow_screen(seen: Seen, served: Served) -> None:
    served.home.forwards[0]["bind"] = "unix:/run/user/1000/" + "a-long-name-" * 6 + ".sock"
    served.home.links[0]["remote"] = "[2001:db8:1111:2222:3333:4444:5555:6666]:41000"
    seen.resize(320, 700)
    seen.open_page(served)
    seen.until(lambda: "2001:db8" in seen.text())
    assert seen.run("return document.documentElement.scrollWidth") <= 320
    beyond = seen.run("""
        return [...document.querySelectorAll("body *")]
            .filter((each) => each.checkVisibility() && !each.closest(".scroll, .gone, .skip"))
            .filter((each) => each.getBoundingClientRect().right > 320.5).map((each) => each.outerHTML.slice(0, 100));
    """)
    assert beyond == []
    seen.picture("narrow")
    assert seen.console() == []


def test_everything_has_a_name_and_a_place_for_a_screen_reader(seen: Seen, served: Served) -> None:
    seen.open_page(served)
    for element in seen.driver.find_elements(
        By.CSS_SELECTOR, "input, button, article, section, form.card, [role]:not([role=alert])"
    ):
        if element.is_displayed() and element.get_attribute("id") != "state":
            assert element.accessible_name, element.get_attribute("outerHTML")
    names = [each.accessible_name for each in seen.card("ben").find_elements(By.TAG_NAME, "button")]
    assert len(set(names)) == len(names), names  # "Remove" alone does not say what
    for element in seen.driver.find_elements(By.CSS_SELECTOR, "[aria-describedby], [aria-labelledby]"):
        for kind in ("aria-describedby", "aria-labelledby"):
            for name in (element.get_attribute(kind) or "").split():
                assert seen.driver.find_elements(By.ID, name), name
    assert [each.tag_name for each in seen.driver.find_elements(By.CSS_SELECTOR, "h1, h2")] == ["h1", "h2", "h2", "h2", "h2"]
    assert seen.driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


# ------------------------------------------------------------ used


def test_a_forward_is_added_and_removed(seen: Seen, served: Served) -> None:
    seen.open_page(served)
    card = seen.card("ben")
    seen.labelled(card, "LOCAL:REMOTE, as in 2222:22").send_keys(" 9090:90 ")
    seen.button(card, "Add").click()
    seen.until(lambda: "127.0.0.1:9090" in card.text)
    assert served.home.calls == [("add_forward", "ben", "9090:90", True)]
    assert "9090:90 leads to ben now." in card.text
    seen.button(card, "Remove 127.0.0.1:9090 → tcp/90").click()
    dialog = seen.driver.find_element(By.ID, "ask")
    assert "9090:90" in dialog.text
    seen.picture("ask")
    seen.button(dialog, "Leave it").click()
    seen.until(lambda: not dialog.is_displayed())
    assert len(served.home.calls) == 1
    seen.button(card, "Remove 127.0.0.1:9090 → tcp/90").click()
    seen.button(dialog, "Remove").click()
    seen.until(lambda: "127.0.0.1:9090" not in card.text)
    assert served.home.calls[1:] == [("remove_forward", "ben", "9090:90", True)]
    assert seen.console() == []


def test_a_port_at_which_the_peer_listens_is_added_and_removed(seen: Seen, served: Served) -> None:
    seen.open_page(served)
    card = seen.card("ben")
    seen.button(card, "Remove 127.0.0.1:8081 there → 127.0.0.1:3001, not yet").click()
    seen.button(seen.driver.find_element(By.ID, "ask"), "Remove").click()
    seen.until(lambda: "127.0.0.1:3001" not in card.text)
    assert served.home.calls == [("remove_forward", "ben", "remote:8081:3001", True)]
    assert "127.0.0.1:3000" in card.text
    served.home.remotes.clear()
    served.home.servers.pop()
    seen.until(lambda: "Ports of this machine, there" not in card.text)
    seen.until(lambda: not seen.driver.find_element(By.ID, "servers").is_displayed())
    seen.labelled(card, "LOCAL:REMOTE, as in 2222:22").send_keys("remote:9000:90")
    seen.button(card, "Add").click()
    seen.until(lambda: ("add_forward", "ben", "remote:9000:90", True) in served.home.calls)
    assert seen.console() == []


def test_a_grant_is_given_and_taken_back(seen: Seen, served: Served) -> None:
    seen.open_page(served)
    card = seen.card("office")
    seen.labelled(card, "Ports of this machine").send_keys("22, 8080")
    seen.button(card, "Allow").click()
    seen.until(lambda: "office may reach 22, 8080 now." in card.text)
    seen.until(lambda: seen.button(card, "Take back 8080")).click()
    seen.button(seen.driver.find_element(By.ID, "ask"), "Take back").click()
    seen.until(lambda: "office may not reach 8080 any more." in card.text)
    assert served.home.calls == [("grant", "office", ["22", "8080"]), ("revoke", "office", ["8080"], True)]
    assert served.home.grants["office"] == ["22"]
    assert seen.console() == []


def test_somebody_is_invited_with_a_picture_and_met_by_a_code(seen: Seen, served: Served) -> None:
    seen.open_page(served)
    form = seen.driver.find_element(By.ID, "invite")
    seen.labelled(form, "What they may reach here").send_keys("22")
    seen.button(form, "Make a code").click()
    seen.until(lambda: "731-garden-violin" in form.text)
    assert "ptunnel connect 731-garden-violin@rv --forward 22" in form.text
    picture = form.find_element(By.TAG_NAME, "img")
    seen.until(lambda: seen.run("return document.getElementById('picture').naturalWidth > 50"))
    assert picture.accessible_name == "QR code of: ptunnel connect 731-garden-violin@rv --forward 22"
    form = seen.driver.find_element(By.ID, "join")
    seen.labelled(form, "Code that they have shown you").send_keys("1-wrong-code")
    seen.button(form, "Meet them").click()
    seen.until(lambda: "The code is wrong: ask for it once more." in form.text)
    field = seen.labelled(form, "Code that they have shown you")
    assert field.get_attribute("aria-invalid") == "true"
    assert field.get_attribute("value") == "1-wrong-code"
    seen.picture("invitation-and-error")
    field.clear()
    field.send_keys("731-garden-violin")
    seen.labelled(form, "Ports of theirs to have here").send_keys("2200:22 8000")
    seen.button(form, "Meet them").click()
    seen.until(lambda: "You have met carol." in form.text)
    seen.until(lambda: seen.card("carol"))
    assert served.home.calls[-1] == ("join", "731-garden-violin", ["2200:22", "8000"], True)
    assert seen.console() == []


def test_all_of_it_goes_by_keyboard_and_the_focus_is_seen(seen: Seen, served: Served) -> None:
    seen.open_page(served)

    def press(*keys: str) -> None:
        seen.driver.switch_to.active_element.send_keys(*keys)

    def tab_to(name: str) -> None:
        for _ in range(80):
            webdriver.ActionChains(seen.driver).send_keys(Keys.TAB).perform()
            active = seen.driver.switch_to.active_element
            outline = seen.run("return getComputedStyle(document.activeElement).outline")
            assert "solid 3px" in outline, active.accessible_name
            if active.accessible_name == name:
                return
        raise AssertionError(f"never came to {name!r}")

    tab_to("LOCAL:REMOTE, as in 2222:22")  # anna's, the first card
    press("7070:70", Keys.ENTER)
    seen.until(lambda: served.home.calls == [("add_forward", "anna", "7070:70", True)])
    seen.until(lambda: "7070:70 leads to anna now." in seen.text())
    assert seen.driver.switch_to.active_element.accessible_name == "LOCAL:REMOTE, as in 2222:22"
    tab_to("Take back tcp/22")
    webdriver.ActionChains(seen.driver).send_keys(Keys.ENTER).perform()
    dialog = seen.driver.find_element(By.ID, "ask")
    seen.until(dialog.is_displayed)
    assert seen.driver.switch_to.active_element.accessible_name == "Leave it"
    webdriver.ActionChains(seen.driver).send_keys(Keys.ESCAPE).perform()
    seen.until(lambda: not dialog.is_displayed())
    assert len(served.home.calls) == 1
    assert seen.driver.switch_to.active_element.accessible_name == "Take back tcp/22"
    webdriver.ActionChains(seen.driver).send_keys(Keys.ENTER).perform()
    seen.until(dialog.is_displayed)
    tab_to("Take back")
    webdriver.ActionChains(seen.driver).send_keys(Keys.ENTER).perform()
    seen.until(lambda: served.home.calls[1:] == [("revoke", "ben", ["tcp/22"], True)])
    seen.until(lambda: "ben may not reach tcp/22 any more." in seen.text())
    assert seen.run("return document.activeElement.textContent") == "ben"
    assert seen.console() == []


def test_what_is_being_typed_stays_while_the_page_is_kept_up_to_date(seen: Seen, served: Served) -> None:
    seen.open_page(served)
    field = seen.labelled(seen.card("ben"), "LOCAL:REMOTE, as in 2222:22")
    field.send_keys("80")
    before = served.home.uptime_s
    served.home.grants["ben"].append("tcp/99")
    served.home.grants["zoe"] = []
    seen.until(lambda: served.home.uptime_s > before + 3 and seen.card("zoe"))
    assert seen.run("return document.activeElement.value") == "80"
    assert "tcp/99" in seen.card("ben").text


def test_it_says_that_the_process_is_gone_and_goes_on_when_it_is_back(seen: Seen) -> None:
    first = Served(TwinHome())
    try:
        seen.open_page(first)
    finally:
        first.stop()
    state = seen.driver.find_element(By.ID, "state")
    seen.until(lambda: "ptunnel does not answer" in state.text)
    card = seen.card("ben")
    seen.labelled(card, "LOCAL:REMOTE, as in 2222:22").send_keys("80")
    seen.button(card, "Add").click()
    seen.until(lambda: "ptunnel does not answer" in card.text)
    seen.picture("away")
    home = TwinHome()
    home.pid += 1
    second = Served(home, first.place.port)
    try:
        seen.until(lambda: "ptunnel has started anew, and answers." in state.text)
        seen.button(card, "Add").click()
        seen.until(lambda: "80 leads to ben now." in card.text)
    finally:
        second.stop()


def test_a_reload_keeps_the_token_and_a_new_tab_is_told_what_to_do(seen: Seen, served: Served) -> None:
    seen.open_page(served)
    seen.driver.refresh()
    seen.until(lambda: seen.card("ben"))
    before = seen.driver.current_window_handle
    seen.driver.switch_to.new_window("tab")
    try:
        seen.open(served.origin)
        seen.until(lambda: "run that in a terminal" in seen.text())
        assert "ben" not in seen.text()
        seen.picture("no-token")
        seen.open(f"{served.origin}/#AAAAAAAAAAAAAAAAAAAAAA")
        seen.until(lambda: "run that in a terminal" in seen.text())
        seen.run(f"location.hash = {TOKEN!r}")  # as when the right address is pasted into this tab
        seen.until(lambda: seen.card("ben"))
    finally:
        seen.driver.close()
        seen.driver.switch_to.window(before)


# ------------------------------------------------------------ beside others


def test_the_token_leaves_the_address_and_reaches_no_other_port(seen: Seen, served: Served, elsewhere: Elsewhere) -> None:
    seen.open_page(served)
    assert seen.driver.current_url == f"{served.origin}/"
    assert seen.driver.get_cookies() == []
    assert seen.run("return localStorage.length") == 0
    seen.run(f"location.href = 'http://127.0.0.1:{elsewhere.port}/'")
    seen.until(lambda: seen.driver.title == "elsewhere")
    assert (
        seen.run("return JSON.stringify([document.referrer, document.cookie, {...sessionStorage}, {...localStorage}, name])")
        == '["","",{},{},""]'
    )
    assert elsewhere.heard
    assert all(TOKEN not in each and "Cookie" not in each and served.origin not in each for each in elsewhere.heard)
    seen.driver.back()
    seen.until(lambda: seen.card("ben"))
    assert TOKEN not in seen.driver.current_url


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "evil.example"])
def test_another_site_in_the_same_browser_gets_nothing(seen: Seen, served: Served, elsewhere: Elsewhere, name: str) -> None:
    """A site at another port of this machine, and one whose name leads to this machine (DNS rebinding)."""
    seen.open(f"http://{name}:{elsewhere.port}/")
    key = f"headers: {{Authorization: 'Bearer {TOKEN}', 'Content-Type': 'application/json'}}"
    action = "method: 'POST', body: JSON.stringify({do: 'revoke', peer: 'ben', what: ['tcp/22']})"
    targets = [served.origin, f"http://{name}:{served.place.port}"]
    for origin in targets:
        for path, more in (
            ("/", ""),
            ("/events", ""),
            ("/events", f"{key}"),
            ("/do", f"{key}, {action}"),
            ("/do", f"mode: 'no-cors', {action}"),
        ):
            got = seen.run_async(f"""
                const done = arguments[0];
                fetch("{origin}{path}", {{{more}}}).then((answer) => answer.text()).then(done, (problem) => done(problem.name));
            """)
            assert got in ("TypeError", ""), (origin, path)
    assert served.home.calls == []
    seen.run(f"""
        const form = document.createElement("form");
        Object.assign(form, {{method: "post", action: "{served.origin}/do", enctype: "text/plain", target: "inside"}});
        const field = document.createElement("input");
        Object.assign(field, {{name: '{{"do":"revoke","peer":"ben","what":["', value: 'tcp/22"]}}'}});
        form.append(field);
        document.body.append(form);
        form.submit();
    """)
    seen.until(lambda: served.page.refused["site"] >= 4)
    seen.run(f"document.querySelector('iframe').src = '{served.address}'")
    seen.until(lambda: any("frame" in each.lower() for each in seen.console()))
    if name == "evil.example":  # the page's own port under a foreign name
        seen.open(f"http://evil.example:{served.place.port}/#{TOKEN}")
        assert "has another address" in seen.text()
        assert served.page.refused["host"] > 0
    assert served.home.calls == []


def test_what_a_peer_calls_itself_is_text(seen: Seen, served: Served) -> None:
    home = served.home
    for text in (HOSTILE_NAME, "<script>document.title=1</script>", '"><svg onload=document.title=1>'):
        home.links.append(link(text, "relay", why=text, remote=text))
        home.grants[text] = [text]
        home.forwards.append({"peer": text, "bind": text, "target": text, "spec": text})
    text = HOSTILE_NAME
    member = {"peer": text, "address": text, "ipv6": text, "online": True, "self": False, "creator": False}
    home.servers.append({"server": text, "role": "silent", "rtt_s": None, "why": text})
    home.links[-1]["relays"] = [{"server": text, "role": "carries", "rtt_s": 1.0, "peer_rtt_s": None, "why": text}]
    home.remotes.append({"peer": text, "bind": text, "target": text, "spec": text, "listening": True})
    home.rooms.append({"room": text, "creator": False, "interface": text, "subnet": text, "members": [member]})
    home.refusal = HOSTILE_NAME
    seen.open_page(served)
    seen.until(lambda: seen.text().count(HOSTILE_NAME) > 6)
    card = seen.card(HOSTILE_NAME)
    card.find_elements(By.CSS_SELECTOR, "ul button")[0].click()
    dialog = seen.driver.find_element(By.ID, "ask")
    assert HOSTILE_NAME in dialog.text
    seen.button(dialog, "Remove").click()
    seen.until(lambda: card.find_element(By.CSS_SELECTOR, ".answer.is-bad").text == HOSTILE_NAME)
    seen.picture("hostile")
    assert seen.driver.find_elements(By.CSS_SELECTOR, "#main img:not(#picture), #main script, #main svg:not(.plot svg)") == []
    assert re.fullmatch("ptunnel", seen.driver.title)
    assert seen.console() == []


# ------------------------------------------------------------ the real thing


def test_a_real_home_is_shown_and_changed(seen: Seen, tmp_path: Path) -> None:
    lab = Programs(tmp_path)
    try:
        start(lab, tmp_path, f"127.0.0.1:{free_port()}")
        leader = tmp_path / "leader.html"  # as `ptunnel page` gives it to a browser
        leader.write_text(leader_of(find_page(lab, tmp_path)["url"]))
        seen.open(leader.as_uri())
        card = seen.until(lambda: seen.card("ben"))
        local = free_port()
        seen.labelled(card, "LOCAL:REMOTE, as in 2222:22").send_keys(f"{local}:{lab.port}")
        seen.button(card, "Add").click()
        seen.until(lambda: f"127.0.0.1:{local}" in card.text)
        assert echo_through(f"127.0.0.1:{local}", b"through") == b"through"
        seen.until(lambda: "direct" in card.text)
        seen.until(lambda: " ms" in card.text)
        form = seen.driver.find_element(By.ID, "invite")
        seen.labelled(form, "What they may reach here").send_keys("22")
        seen.button(form, "Make a code").click()
        seen.until(lambda: "--forward 2222:22" in form.text)
        seen.picture("real")
        assert seen.console() == []
    finally:
        lab.close()
