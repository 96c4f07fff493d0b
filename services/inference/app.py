"""Builds the inference service."""

from models.bundle import LoadedModel
from models.predictor import Predictor, choose_device
from schemas.settings import InferenceSettings
from services.inference.bundles import BundleCache
from services.inference.handlers import Inference
from services.inference.mending import Mender
from services.inference.scoring import Scorer
from services.inference.unscored import catch_up, tidy
from services.runtime.service import Context, Service, Ticker, Worker
from services.runtime.transaction import Transaction

CATCH_UP_S = 5.0
TIDY_S = 600.0


def build(context: Context) -> Service:
    """The consumer that scores, what sees to studies that wait, and what drops old notes; threads end with `on_close`."""
    consumer = make_consumer(context)
    keep_days = context.settings.inference.unscored_days

    def resume(tx: Transaction) -> None:
        catch_up(tx)

    def forget(tx: Transaction) -> None:
        tidy(tx, keep_days)

    tickers = (Ticker("inference.catch_up", CATCH_UP_S, resume), Ticker("inference.tidy", TIDY_S, forget))
    workers = (Worker("inference.mending", Mender(context.database, consumer.bundles).run),)
    return Service(Inference.name, (consumer,), tickers, workers, on_close=(consumer.close,))


def make_consumer(context: Context) -> Inference:
    """The consumer alone."""
    settings = context.settings
    wanted = settings.inference
    bundles = BundleCache(settings.models_dir, lambda loaded: _predictor(loaded, wanted), context.clock.monotonic)
    scorer = Scorer(wanted.decode_workers, wanted.batch_size, wanted.threads)
    return Inference(context.database, settings.archive_dir, bundles, scorer)


def _predictor(loaded: LoadedModel, settings: InferenceSettings) -> Predictor:
    return Predictor(loaded, choose_device(settings.device), settings.precision, settings.batch_size)
