"""C-Eval, CMMLU and MMLU: a CSV file for each subject and part, with four options to a question.

The prompts are those that the authors publish for answers without reasoning.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from hanlin.core.errors import DataError

from .questions import Subject, SuiteQuestion

__all__ = ["EXAMS", "Exam"]

_LETTERS = "ABCD"
_SUBJECTS = Path(__file__).with_name("subjects.yaml")


@dataclass(frozen=True)
class Exam:
    """How the files of such a suite lie, and what is asked.

    path: of a part's file of a subject; parts: the first is scored by default; examples: the part that shows how;
    question, answer: names of the columns; head, text: with {title} of the subject and {question}, {A}, ... of a row;
    blank: stands before an answer that goes on with a text; has_names: whether the first line of a file names columns,
    which are else the question, the options and the answer; pools: whether a category's number is the share of its
    questions, and not the mean of its subjects; is_chinese: whether its questions are, as what makes a model reason is.
    """

    name: str
    path: str
    parts: tuple[str, ...]
    examples: str
    question: str
    answer: str
    head: str
    text: str
    blank: str = ""
    has_names: bool = True
    pools: bool = False
    is_chinese: bool = True

    @property
    def subjects(self) -> dict[str, dict[str, object]]:
        return _all_subjects()[self.name]

    def read(self, folder: Path, part: str, names: Sequence[str]) -> list[Subject]:
        """Raises: DataError for files that are missing or odd."""
        paths = {name: self._path(folder, part, name) for name in names}
        if missing := [str(path) for path in paths.values() if not path.is_file()]:
            more = ", ..." if len(missing) > 3 else ""
            raise DataError(
                f"{', '.join(missing[:3])}{more}: there is no such file; give --data the folder that holds "
                f"{self.path.format(part=part, subject='SUBJECT')}, or name the subjects that are there (--subjects)"
            )
        return [self._subject(folder, name, path) for name, path in paths.items()]

    def _path(self, folder: Path, part: str, name: str) -> Path:
        return folder / self.path.format(part=part, subject=name)

    def _subject(self, folder: Path, name: str, path: Path) -> Subject:
        facts = self.subjects[name]
        shown = self._path(folder, self.examples, name)
        examples = self._questions(shown) if shown.is_file() else []
        groups = tuple(map(str, facts["groups"]))  # pyright: ignore[reportArgumentType]
        head = self.head.format(title=facts["title"])
        return Subject(name, str(facts["title"]), self._questions(path), examples, groups, head)

    def _questions(self, path: Path) -> list[SuiteQuestion]:
        names = (self.question, *_LETTERS, self.answer)
        rows = read_table(path, names[:-1]) if self.has_names else read_table(path, names, names)
        questions = [self._question(path, number, row) for number, row in enumerate(rows)]
        if double := next((id for id, count in Counter(one.id for one in questions).items() if count > 1), None):
            raise DataError(f"{path}: the id {double!r:.40} stands there twice, so that answers cannot be told apart")
        return questions

    def _question(self, path: Path, number: int, row: Mapping[str, str]) -> SuiteQuestion:
        text = self.text.format(question=row[self.question].strip(), **{letter: row[letter] for letter in _LETTERS})
        gold = (row.get(self.answer) or "").strip() or None
        if gold is not None and gold not in _LETTERS:
            raise DataError(f"{path}: row {number + 1}: {self.answer} is {gold!r:.20}, expected one of A, B, C, D")
        told = {letter: f"{self.blank}{letter}" for letter in _LETTERS}
        answers = {letter: letter for letter in _LETTERS} if self.blank else None
        return SuiteQuestion(row.get("id") or str(number), text, told, gold, answers=answers)


_OPTIONS = "\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n"

EXAMS = {
    "ceval": Exam(
        "ceval",
        "{part}/{subject}_{part}.csv",
        ("val", "test"),
        "dev",
        "question",
        "answer",
        "以下是中国关于{title}考试的单项选择题，请选出其中的正确答案。\n\n",
        "{question}" + _OPTIONS + "答案：",
    ),
    "cmmlu": Exam(
        "cmmlu",
        "{part}/{subject}.csv",
        ("test",),
        "dev",
        "Question",
        "Answer",
        "以下是关于{title}的单项选择题，请直接给出正确答案的选项。\n\n",
        "题目：{question}" + _OPTIONS + "答案是：",
    ),
    "mmlu": Exam(
        "mmlu",
        "{part}/{subject}_{part}.csv",
        ("test", "val"),
        "dev",
        "question",
        "answer",
        # differs: the authors' program writes two blanks before the subject; lm-evaluation-harness one, as here.
        "The following are multiple choice questions (with answers) about {title}.\n\n",
        "{question}" + _OPTIONS + "Answer:",
        blank=" ",
        has_names=False,
        pools=True,
        is_chinese=False,
    ),
}


def read_table(path: Path, columns: Sequence[str], names: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns; one without a name may stand first, as pandas writes it.

    names: of the columns of a file whose first line names none.
    Raises: DataError.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: is not UTF-8; if it was saved as GBK, convert it: iconv -f GB18030 -t UTF-8 FILE > NEW"
        ) from None
    reader = csv.DictReader(io.StringIO(text, newline=""), names)
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise DataError(
            f"{path}: the first line names {', '.join(reader.fieldnames or ()) or 'no columns':.80}, and "
            f"{', '.join(missing)} is missing; take the file as its authors publish it"
        )
    rows = []
    try:
        for row in reader:
            if None in row or any(row[name] is None for name in columns):
                wanted = ", ".join(reader.fieldnames or ())
                raise DataError(f"{path}: near line {reader.line_num}: a row has not one value for each of {wanted}")
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: near line {reader.line_num}: no CSV can be read from it ({error})") from None
    if not rows:
        raise DataError(f"{path}: the file holds no questions")
    return rows


@cache
def _all_subjects() -> dict[str, dict[str, dict[str, object]]]:
    return yaml.safe_load(_SUBJECTS.read_text("utf-8"))
