"""A result as DICOM Structured Report: TID 1500 Measurement Report (PS3.16), Comprehensive SR, through highdicom.

One measurement group (TID 1501) holds the task as finding category, the predicted class as finding, a probability per class,
the algorithm with version and weights (TID 4019), the images it is about, and remarks as text. The document is unverified
and preliminary: a person has to look.
"""

import hashlib
from typing import Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from highdicom.sr.enum import RelationshipTypeValues
from pydicom.dataset import Dataset

from services.results.finding import MANUFACTURER, NOT_FOR_DIAGNOSIS, Result
from services.results.header import file_meta, put_header, put_times
from services.runtime.result_uids import result_uid

SERIES_NUMBER: Final = 9901
COMPREHENSIVE_SR: Final = "1.2.840.10008.5.1.4.1.1.88.33"
SCHEME: Final = "99RECLAIM"
NO_UNITS: Final = CodedConcept("1", "UCUM", "no units")
COMMENT: Final = CodedConcept("121106", "DCM", "Comment")
IMAGING_PROCEDURE: Final = CodedConcept("363679005", "SCT", "Imaging procedure")
_LONGEST_MEANING: Final = 64


def build_report(result: Result, header: Dataset) -> Dataset:
    """The SR of a result, ready to be written; `header` is the study's, from `read_header`."""
    document = ComprehensiveSR(
        evidence=_evidence(result),
        content=_content(result)[0],
        series_instance_uid=result.series_uid("SR"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result.uid("SR"),
        instance_number=result.revision,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=result.model[:_LONGEST_MEANING],
        software_versions=str(result.version),
        series_description=f"{result.model} version {result.version}: result"[:_LONGEST_MEANING],
        is_complete=True,
        is_final=False,
    )
    document.CodingSchemeIdentificationSequence = [_scheme()]
    put_header(document, header)
    put_times(document, header, result.scored_at, "InstanceCreationDate", "ContentDate")
    for equipment in document.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = f"{result.scored_at:%Y%m%d%H%M%S}+0000"  # the library puts the time of writing
    document.file_meta = file_meta(COMPREHENSIVE_SR, document.SOPInstanceUID)
    return document


def coded(result: Result, word: str, kind: str) -> CodedConcept:
    """A class's or task's concept: the site's code where one is set, else a private one that is stable for the word."""
    if word in result.codes:
        value, scheme, meaning = result.codes[word]
        return CodedConcept(value, scheme, meaning)
    return _private(kind, word, word)


def _private(kind: str, word: str, meaning: str) -> CodedConcept:
    digest = hashlib.sha256(f"{kind}\x1f{word}".encode()).hexdigest()[:12]
    return CodedConcept(f"{kind}-{digest}", SCHEME, meaning[:_LONGEST_MEANING] or kind)


def _content(result: Result) -> MeasurementReport:
    device = DeviceObserverIdentifyingAttributes(
        uid=result_uid("device", result.model, result.version, result.weights),
        name=f"{result.model} version {result.version}",
        manufacturer_name=MANUFACTURER,
        model_name=result.model,
    )
    observer = ObserverContext(CodedConcept("121007", "DCM", "Device"), device)
    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=IMAGING_PROCEDURE,
        imaging_measurements=[_group(result)],
    )


def _group(result: Result) -> MeasurementsAndQualitativeEvaluations:
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=result.uid("tracking"), identifier=f"{result.model}:{result.version}"),
        finding_category=coded(result, result.task, "T"),
        finding_type=coded(result, result.predicted, "C"),
        algorithm_id=AlgorithmIdentification(
            name=result.model,
            version=str(result.version),
            parameters=[f"weights sha256 {result.weights}"],
            manufacturer=MANUFACTURER,
        ),
        measurements=[
            Measurement(name=_private("P", name, f"Probability of {name}"), value=round(probability, 6), unit=NO_UNITS)
            for name, probability in result.ranked
        ],
        source_images=[SourceImageForMeasurementGroup(each.sop_class_uid, each.sop_instance_uid) for each in result.images],
    )
    group[0].ContentSequence.extend(_remark(text) for text in remarks(result))
    return group


def remarks(result: Result) -> list[str]:
    """What a reader has to know beside the numbers."""
    about = f"Revision {result.revision} of the study."
    return [NOT_FOR_DIAGNOSIS, about, *result.findings]


def _remark(text: str) -> TextContentItem:
    return TextContentItem(name=COMMENT, value=text, relationship_type=RelationshipTypeValues.CONTAINS)


def _scheme() -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeName = "Classes and tasks as the site named them"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _evidence(result: Result) -> list[Dataset]:
    """The images as far as an SR refers to them; patient and study come from the header afterwards."""
    made = []
    for each in result.images:
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = each.sop_class_uid, each.sop_instance_uid
        image.StudyInstanceUID, image.SeriesInstanceUID = result.study_uid, each.series_uid
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(image, keyword, "")
        image.StudyDate = image.StudyTime = None
        made.append(image)
    return made
