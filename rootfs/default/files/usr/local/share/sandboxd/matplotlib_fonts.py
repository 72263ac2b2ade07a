# --- Appended by the recipe of this rootfs (rootfs/default/finish) -------------------------------------------------
#
# matplotlib keeps the list of fonts that it once found, here since this rootfs was built, and never looks again. So a
# font that somebody installs later (~/.fonts, apt) would not be found. And a text in Chinese, Japanese or Korean would
# be a row of boxes unless its author names a font that has it.


def _sandboxd_font_roots():
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    system = ["/usr/share/fonts", "/usr/local/share/fonts"]
    return [*system, os.path.join(data, "fonts"), os.path.expanduser("~/.fonts")]


def _sandboxd_stamp(directory):
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return None


def _sandboxd_add_new_fonts(manager, seen={}):  # noqa: B006 - kept between calls: {directory: when it last changed}
    roots = _sandboxd_font_roots()
    if all(root in seen for root in roots) and all(_sandboxd_stamp(name) == stamp for name, stamp in seen.items()):
        return
    seen.clear()
    known = {font.fname for font in manager.ttflist}
    for root in roots:
        seen[root] = _sandboxd_stamp(root)
        for directory, _, names in os.walk(root):
            seen[directory] = _sandboxd_stamp(directory)
            for name in names:
                path = os.path.join(directory, name)
                if path not in known and name.lower().endswith((".ttf", ".otf", ".ttc", ".otc")):
                    try:
                        manager.addfont(path)
                    except Exception as error:
                        _log.info("cannot read the font %s: %s", path, error)


def _sandboxd_findfont(self, *args, **kwargs):
    _sandboxd_add_new_fonts(self)
    return _sandboxd_original_findfont(self, *args, **kwargs)


def _sandboxd_find_fonts_by_props(self, prop, fontext="ttf", *args, **kwargs):
    found = _sandboxd_original_find_fonts(self, prop, fontext, *args, **kwargs)
    if fontext == "ttf":
        last = next((font for font in self.ttflist if font.name == "WenQuanYi Micro Hei"), None)
        path = last and self.findfont(FontProperties(family=last.name), fallback_to_default=False)
        if path and path not in found:
            found.append(path)
    return found


_sandboxd_original_findfont = FontManager.findfont
_sandboxd_original_find_fonts = FontManager._find_fonts_by_props
FontManager.findfont = functools.wraps(FontManager.findfont)(_sandboxd_findfont)
FontManager._find_fonts_by_props = functools.wraps(FontManager._find_fonts_by_props)(_sandboxd_find_fonts_by_props)
findfont = fontManager.findfont
