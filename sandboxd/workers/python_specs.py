"""Shows plotly's figures as their specification, by every way that plotly has to show one.

Its own ways are for a notebook or a browser: they need nbformat, or load megabytes of plotly.js into a page.
"""

import json

PLOTLY = "application/vnd.plotly.v1+json"


def patches(session):
    """Return what is to be done to plotly's modules when they have been imported, by name."""

    def publish(figure, config=None):
        from plotly.io import to_json

        name = "Figure" if isinstance(figure, dict) else type(figure).__name__
        bundle = {"text/plain": name + "(…)", PLOTLY: to_json(figure, validate=False)}
        if config:
            bundle[PLOTLY] = json.dumps({**json.loads(bundle[PLOTLY]), "config": config})
        session.shell.display_pub.publish(bundle)

    return {
        "plotly.basedatatypes": lambda module: _bundle_by(module.BaseFigure),
        "plotly.basewidget": lambda module: _bundle_by(module.BaseFigureWidget),
        "plotly.missing_anywidget": _do_without_widgets,
        "plotly.missing_ipywidgets": _do_without_widgets,  # before plotly 6
        "plotly.io._renderers": lambda module: _show_by(module, publish),
        "plotly.io._html": lambda module: _open_by(module, publish),
        "plotly.io._base_renderers": _load_nothing,
    }


def _bundle_by(figure_class):
    """Let the value of an expression, and what `display` is given, be the specification."""

    def bundle(self, *_, **__):
        return {"text/plain": "%s(…)" % type(self).__name__, PLOTLY: self.to_json()}

    figure_class._ipython_display_ = None
    figure_class._repr_mimebundle_ = bundle


def _do_without_widgets(module):
    """Let a FigureWidget be a figure where what it needs is not installed: there is no notebook that would move it."""
    from plotly.graph_objs._figure import Figure

    module.FigureWidget = type("FigureWidget", (Figure,), {"__module__": module.__name__})


def _show_by(module, publish):
    """Let `show` (a figure's own, pio's, iplot and iplot_mpl of plotly.offline) publish, whatever the renderer."""
    coerce = module.validate_coerce_fig_to_dict

    def show(fig, renderer=None, validate=True, config=None, **_):
        if isinstance(fig, dict):
            fig = coerce(fig, validate)
        publish(fig, config)

    module.show = show


def _open_by(module, publish):
    """Let what would open a written page in a browser (plotly.offline.plot too) publish the figure."""
    write = module.write_html

    def write_html(fig, file, *args, auto_open=False, **kwargs):
        write(fig, file, *args, **kwargs)
        if auto_open:
            publish(fig)

    module.write_html = write_html


def _load_nothing(module):
    """Load no plotly.js into the page of a notebook: there is none."""
    module.HtmlRenderer.activate = lambda self: None
