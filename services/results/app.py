"""Builds the results service."""

from services.results.handlers import Results
from services.results.worker import ResultWorker
from services.runtime import scu
from services.runtime.service import Context, Service, Worker


def build(context: Context) -> Service:
    """The consumer of predictions and the worker that sends; InvalidInput when the destination is no known peer."""
    destination = context.settings.results.destination
    if destination:
        scu.peer(context.settings.dicom.peers, destination)
    worker = ResultWorker(context)
    return Service(name=Results.name, consumers=(Results(destination),), workers=(Worker("results.delivery", worker.run),))
