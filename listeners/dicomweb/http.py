"""`POST /dicomweb/studies[/{study}]`: Store Instances (PS3.18 §10.5). Success in the answer means what it means for C-STORE.

Memory is bounded whatever is sent: so many requests at once, so many instances of a request under way, 1 MiB of each.
"""

import asyncio
import errno
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import IO, Any, Final

from aiohttp import ClientError, web
from opentelemetry import trace

from listeners.dicom import answers
from listeners.dicom.answers import Answer
from listeners.dicom.presentation import TRANSFER_SYNTAXES, storage_classes
from listeners.dicom.reception import Reception
from listeners.dicomweb import outcome as reasons
from listeners.dicomweb.multipart import BrokenBodyError, Part, check_content_type, read_parts
from listeners.dicomweb.outcome import Outcome, Result
from listeners.dicomweb.part10 import MOST_META, SOURCE, FileMeta, NotPart10, head_of, pieces_of, read_meta, shown, study_of
from services.assembly.files import ArchiveFiles
from services.assembly.headers import MissingElement, UnreadableHeader, is_valid_uid
from services.assembly.index import ArchiveIndex
from services.runtime import telemetry
from services.runtime.service import Context
from services.runtime.transaction import current_traceparent

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("reclaim.dicom")
UNDER_WAY: Final = 4
"""Instances of one request that are stored while the next one is read."""
AT_WORK: Final = 4
"""Instances of all requests that are checked and stored at the same time."""
MOST_INSTANCES: Final = 20_000
RETRY_AFTER_S: Final = "5"
JSON: Final = "application/dicom+json"


def install(app: web.Application, context: Context) -> None:
    """Add the routes, and the archive that they store into, to an application."""
    door = Door(context)
    app.cleanup_ctx.append(door.lifetime)
    app.add_routes([web.post("/dicomweb/studies", door.post), web.post("/dicomweb/studies/{study}", door.post)])


Take = Callable[[Part], Coroutine[Any, Any, Result]]


class Door:
    """Takes requests and hands their instances to the archive's reception."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._dicom = context.settings.dicom
        self._classes = frozenset(storage_classes(context.settings.dicom))
        self._requests = asyncio.Semaphore(context.settings.http.stow_requests)
        self._at_work = asyncio.Semaphore(AT_WORK)
        self._opening = asyncio.Lock()
        self._files: ArchiveFiles | None = None

    async def lifetime(self, _: web.Application) -> AsyncIterator[None]:
        """Close the archive with the application."""
        yield
        if self._files is not None:
            await asyncio.to_thread(self._files.close)

    async def post(self, request: web.Request) -> web.Response:
        """Store the body's instances; the answer lists each (PS3.18 §10.5.3)."""
        check_content_type(request)
        study = request.match_info.get("study", "")
        if study and not is_valid_uid(study):
            raise web.HTTPBadRequest(text="the study in the address is not a valid UID")
        if not _takes_json(request):
            raise web.HTTPNotAcceptable(text=f"answers are {JSON}")
        if self._requests.locked():
            return _refused(503, "WEB-201 too many requests at once, try again")
        async with self._requests:
            return await self._store(request, study)

    async def _store(self, request: web.Request, study: str) -> web.Response:
        try:
            files = await self._archive()
            if await asyncio.to_thread(files.free_bytes) < self._dicom.min_free_bytes:
                logger.warning("%s STOW-RS request refused: %s", answers.DISK_FULL.message_id, answers.DISK_FULL.advice)
                return _refused(507, f"{answers.DISK_FULL.message_id} {answers.DISK_FULL.comment}")
        except OSError as error:
            logger.warning("WEB-202 the archive cannot be opened (%s): check its disk or mount", type(error).__name__)
            return _refused(503, "WEB-202 the archive is not available, try again")
        reception = reception_of(self._context, files)
        found, to_the_end = await self._receive(request, reception, study)
        status = found.status()
        log = logger.info if status == 200 else logger.warning
        log("WEB-001 STOW-RS request answered %d: %d of %d instances stored", status, found.stored, len(found.results))
        # Without charset parameter: the media type has none (RFC 8259 §11, which it follows), and clients compare it as a whole.
        response = web.Response(body=json.dumps(found.as_json()).encode(), status=status, headers={"Content-Type": JSON})
        if status in (503, 507):
            response.headers["Retry-After"] = RETRY_AFTER_S
        if not to_the_end:
            response.force_close()
        return response

    async def _receive(self, request: web.Request, reception: Reception, study: str) -> tuple[Outcome, bool]:
        """Every part's result; and whether the body was read to its end."""
        tasks: list[asyncio.Task[Result]] = []
        cut: Answer | None = None
        try:
            cut = await self._read_all(request, tasks, lambda part: self._take(part, reception, study))
        except BrokenBodyError:
            cut = reasons.BROKEN_BODY
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="nothing came for too long") from None
        except (ClientError, ConnectionError) as error:
            logger.warning("WEB-203 STOW-RS request broken off (%s): what was stored stays", type(error).__name__)
            raise web.HTTPBadRequest(text="the body broke off") from None
        except OSError as error:
            cut = answers.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else answers.STORAGE_AWAY
        finally:
            results = list(await asyncio.gather(*tasks))
        return Outcome([*results, Result(cut)] if cut else results), cut is None

    async def _read_all(self, request: web.Request, tasks: list[asyncio.Task[Result]], take: Take) -> Answer | None:
        running = asyncio.Semaphore(UNDER_WAY)
        limit, timeout_s = self._dicom.max_object_bytes + MOST_META, self._dicom.network_timeout_s
        async for part in read_parts(request, limit, timeout_s, self._context.settings.archive_dir):
            if len(tasks) == MOST_INSTANCES:
                part.file.close()
                return reasons.TOO_MANY
            await running.acquire()
            tasks.append(asyncio.create_task(take(part)))
            tasks[-1].add_done_callback(lambda _: running.release())
        return None

    async def _take(self, part: Part, reception: Reception, study: str) -> Result:
        """Deal with one part and let go of it."""
        async with self._at_work:
            result = await asyncio.to_thread(self._take_now, part, reception, study)
        telemetry.count("reclaim.dicom.instances", status=f"{result.answer.status:04X}", peer=SOURCE)
        if result.answer.message_id.startswith("WEB"):
            sop_class = shown(result.meta.sop_class_uid) if result.meta else ""
            of = f" of SOP class {sop_class}" if sop_class else ""
            answer = result.answer
            logger.warning("%s instance%s refused: %s: %s", answer.message_id, of, answer.comment, answer.advice)
        return result

    def _take_now(self, part: Part, reception: Reception, study: str) -> Result:
        with part.file as file:
            try:
                meta = read_meta(file)
            except NotPart10:
                return Result(reasons.NO_DICOM if part.whole else reasons.TOO_LARGE)
            refusal = self._refusal(part, meta.sop_class_uid, meta.transfer_syntax_uid)
            if refusal is not None:
                return Result(refusal, meta)
            mismatch = _mismatch(file, meta, study) if study else None
            return Result(mismatch or _stored(reception, file, meta), meta)

    def _refusal(self, part: Part, sop_class_uid: str, transfer_syntax_uid: str) -> Answer | None:
        """What negotiation is for an association."""
        if not part.is_dicom:
            return reasons.NO_DICOM
        if not part.whole:
            return reasons.TOO_LARGE
        if sop_class_uid not in self._classes:
            return reasons.CLASS_NOT_SUPPORTED
        return None if transfer_syntax_uid in TRANSFER_SYNTAXES else reasons.SYNTAX_NOT_SUPPORTED

    async def _archive(self) -> ArchiveFiles:
        async with self._opening:
            if self._files is None:
                settings = self._context.settings
                self._files = await asyncio.to_thread(_open, settings.archive_dir, settings.dicom.min_free_bytes)
            return self._files


def _stored(reception: Reception, file: IO[bytes], meta: FileMeta) -> Answer:
    with tracer.start_as_current_span("STOW-RS", kind=trace.SpanKind.SERVER) as span:
        incoming = reception.begin(head_of(meta, current_traceparent()))
        for piece in pieces_of(file, meta):
            incoming.write([piece])
        answer = incoming.finish()
        span.set_attribute("dicom.status", f"0x{answer.status:04X}")
        span.set_attribute("reclaim.message_id", answer.message_id)
    telemetry.count("reclaim.dicom.bytes", incoming.received, peer=SOURCE)
    return answer


def _mismatch(file: IO[bytes], meta: FileMeta, study: str) -> Answer | None:
    """What is wrong with an instance that was posted to a study's address."""
    try:
        return None if study_of(file, meta) == study else reasons.STUDY_MISMATCH
    except UnreadableHeader:
        return answers.BROKEN_DATASET
    except MissingElement as error:
        return answers.MISSING_UID.at(error.tag)


def reception_of(context: Context, files: ArchiveFiles) -> Reception:
    """The same checks and durability as the C-STORE listener's; the row of the index is entered before the answer."""
    settings = context.settings.dicom
    return Reception(
        files,
        ArchiveIndex(context.database, context.pseudonyms),
        context.clock,
        settings.min_free_bytes,
        max_object_bytes=settings.max_object_bytes,
        classes_of_ae=settings.sop_classes_by_ae,
    )


def _open(root: Path, keep_free: int) -> ArchiveFiles:
    root.mkdir(parents=True, exist_ok=True)
    return ArchiveFiles(root, keep_free)


def _takes_json(request: web.Request) -> bool:
    """Whether the sender takes DICOM JSON; the XML form (PS3.18 §8.7.3) is not offered."""
    accepted = request.headers.get("Accept", "*/*")
    kinds = {piece.partition(";")[0].strip().lower() for piece in accepted.split(",")}
    return not kinds.isdisjoint({"*/*", "application/*", "application/json", JSON, ""})


def _refused(status: int, reason: str) -> web.Response:
    body: dict[str, Any] = {"error": reason}
    response = web.json_response(body, status=status, headers={"Retry-After": RETRY_AFTER_S})
    response.force_close()
    return response
