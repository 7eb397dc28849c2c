"""What a structure is called in DICOM: SNOMED CT where a code is known, else the label's own words in a private scheme.

The SNOMED CT codes are those of DICOM PS3.16 (CID 7140, 7153 and the context groups of the organs); a test compares
them with pydicom's copy, which is highdicom's too. PS3.16 has none for the red, the subthalamic and the dentate nucleus
and for the two parts of the globus pallidus; the test fails when a new edition brings one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ctnet_nnunet.laterality import split_side

PRIVATE_SCHEME = "99CTNET"
"""DICOM leaves designators that begin with 99 to whoever writes the file."""


@dataclass(frozen=True)
class Code:
    """A code, the scheme that it is of, and its meaning in words."""

    value: str
    scheme: str
    meaning: str


ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}

_ANATOMY = {
    "11000004": ("Caudate Nucleus", "caudate", "caudate nucleus"),
    "89278009": ("Putamen", "putamen"),
    "14738005": ("Globus Pallidus", "globus pallidus", "pallidum", "pallidus"),
    "42695009": ("Thalamus", "thalamus", "thalamus proper"),
    "70007007": ("Substantia nigra", "substantia nigra"),
    "31428008": ("Corpus striatum", "corpus striatum", "striatum"),
    "85637007": ("internal capsule", "internal capsule"),
    "87463005": ("Cerebral fornix", "fornix"),
    "427667007": ("Nucleus Accumbens", "nucleus accumbens", "accumbens", "accumbens area"),
    "5366008": ("Hippocampus", "hippocampus"),
    "4958002": ("Amygdala", "amygdala"),
    "119238007": ("Brain Stem", "brain stem", "brainstem"),
    "113305005": ("Cerebellum", "cerebellum"),
    "66720007": ("Lateral Ventricle", "lateral ventricle"),
    "49841001": ("Third ventricle", "third ventricle", "3rd ventricle"),
    "35918002": ("Fourth Ventricle", "fourth ventricle", "4th ventricle"),
    "88442005": ("Corpus callosum", "corpus callosum"),
    "40146001": ("Cerebral cortex", "cerebral cortex"),
    "68523003": ("Cerebral White Matter", "cerebral white matter"),
    "12738006": ("Brain", "brain"),
    "10200004": ("Liver", "liver"),
    "78961009": ("Spleen", "spleen"),
    "64033007": ("Kidney", "kidney"),
    "15776009": ("Pancreas", "pancreas"),
    "28231008": ("Gallbladder", "gallbladder", "gall bladder"),
    "69695003": ("Stomach", "stomach"),
    "38848004": ("Duodenum", "duodenum"),
    "32849002": ("Esophagus", "esophagus", "oesophagus"),
    "15825003": ("Aorta", "aorta"),
    "64131007": ("Inferior vena cava", "inferior vena cava", "postcava"),
    "23451007": ("Adrenal gland", "adrenal gland", "adrenal"),
    "89837001": ("Bladder", "bladder", "urinary bladder"),
    "41216001": ("Prostate", "prostate"),
    "39607008": ("Lung", "lung"),
    "80891009": ("Heart", "heart"),
    "71341001": ("Femur", "femur"),
}
_ABNORMAL = {
    "79654002": ("Edema", "edema", "oedema"),
    "6574001": ("Necrosis", "necrosis"),
    "52988006": ("Lesion", "lesion", "lesions"),
    "108369006": ("Neoplasm", "tumor", "tumour", "neoplasm"),
}
_VENTRICLES = {"left": Code("87878005", "SCT", "Left ventricle"), "right": Code("53085002", "SCT", "Right ventricle")}
_BY_NAME = {
    name: (category, Code(value, "SCT", meaning))
    for category, table in ((ANATOMICAL_STRUCTURE, _ANATOMY), (ABNORMAL_STRUCTURE, _ABNORMAL))
    for value, (meaning, *names) in table.items()
    for name in names
}


@dataclass(frozen=True)
class Coded:
    """A structure's category, its type, and its side where the name has one."""

    category: Code
    type: Code
    side: Code | None


def coded(name: str) -> Coded:
    """The codes of a label's name.

    >>> coded("Left-Caudate").type.meaning, coded("Left-Caudate").side.meaning
    ('Caudate Nucleus', 'Left')
    >>> coded("anterior hippocampus").type
    Code(value='ANTERIOR_HIPPOCAM', scheme='99CTNET', meaning='anterior hippocampus')
    """
    side, words = split_side(name)
    plain = " ".join(word for word in words if word != "*")
    if side and plain == "ventricle":  # of the heart: the side is part of its name
        return Coded(ANATOMICAL_STRUCTURE, _VENTRICLES[side], None)
    laterality = SIDES.get(side or "")
    if plain in _BY_NAME:
        category, code = _BY_NAME[plain]
        return Coded(category, code, laterality)
    return Coded(ANATOMICAL_STRUCTURE, _private(plain if side and plain else name), laterality)


def all_codes() -> list[Code]:
    """Every SNOMED CT code of the tables above."""
    fixed = [ANATOMICAL_STRUCTURE, ABNORMAL_STRUCTURE, *SIDES.values(), *_VENTRICLES.values()]
    return [*fixed, *dict.fromkeys(code for _, code in _BY_NAME.values())]


def _private(name: str) -> Code:
    """A code value has 16 characters; the meaning, up to 64, carries the whole name."""
    value = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")[:16] or "STRUCTURE"
    return Code(value, PRIVATE_SCHEME, name[:64])
