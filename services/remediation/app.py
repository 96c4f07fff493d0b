"""Builds the remediation service."""

from services.remediation.handlers import Remediation
from services.remediation.worker import JobWorker
from services.runtime.service import Context, Service, Worker


def build(context: Context) -> Service:
    """The consumer of orders and the worker that carries out repairs."""
    worker = JobWorker(context)
    return Service(
        name=Remediation.name,
        consumers=(Remediation(context.settings),),
        workers=(Worker("remediation.jobs", worker.run),),
    )
