"""The preparation of a corpus: from located text to the folder in its final place."""

import shutil
from dataclasses import dataclass, replace

from recipes.config.corpora import CorpusSettings, MosesBpeCorpus
from recipes.console.messages import say, warn
from recipes.data import sources
from recipes.data.build import Ingredients, build
from recipes.data.language_check import check_languages
from recipes.data.prepared_corpus import Corpus, open_corpus
from recipes.data.sources import CorpusRequest
from recipes.data.splits import clean, leaks, table
from recipes.storage.corpus_folder import CorpusFolder, FolderState, made
from thoth_core.errors import UserError


@dataclass(frozen=True)
class Preparation:
    """A request to build DATA/NAME from raw text."""

    request: CorpusRequest
    name: str
    subwords_of: str | None = None  # the prepared corpus whose sub-word models are used; None: they are learned
    force: bool = False  # whether to build the corpus again although it is there

    def run(self) -> None:
        """Build the corpus unless it is up to date. All inputs are read and checked before anything is written.

        Raises:
            UserError: an input is missing or wrong, or the final place must not be replaced.
        """
        request, shared = self.request, None
        if self.subwords_of is not None:
            shared = open_shared(self.subwords_of, request)
            request = replace(request, settings=_with_subwords(request.settings, shared))
        settings = request.settings
        folder = CorpusFolder(request.data.absolute(), self.name)
        source = sources.locate(request)
        fingerprint = sources.fingerprint(settings, source, shared)
        if self._up_to_date(folder, fingerprint):
            folder.tidy()
            return

        say(f"reading {self.name}: {settings.description}")
        raw, tests = sources.read(source, request)
        check_languages(raw, settings)
        splits = clean(raw, settings)
        del raw
        say(table(splits.counts))
        leaked = leaks(splits.text)
        for split, count in leaked.items():
            message = f"{split}: {count:,} of {len(splits.text[split]):,} source sentences occur in the training text"
            if source.reader == "quickstart":
                raise UserError(f"{request.path}: {message}; change the seed or the sizes under 'quickstart'")
            warn(message)

        self._install(folder, Ingredients(self.name, settings, splits, tests, leaked, fingerprint, shared))

    def _install(self, folder: CorpusFolder, corpus: Ingredients) -> None:
        with made(folder.data), folder.locked() as lock:
            folder.recover()
            # Another process may have built it while this one was reading or waiting.
            if self._up_to_date(folder, corpus.fingerprint):
                return
            try:
                folder.partial.mkdir()
                build(folder.partial, corpus, lock)
                folder.install()
            except BaseException as error:
                shutil.rmtree(folder.partial, ignore_errors=True)
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = str(folder.final)  # a failed write does not know its file
                raise
        say(f"wrote {folder.final}")

    def _up_to_date(self, folder: CorpusFolder, fingerprint: str) -> bool:
        """Whether there is nothing to do. Raises a UserError if the final place must not be replaced."""
        state, final = folder.state(fingerprint), folder.final
        if state is FolderState.FOREIGN:
            raise UserError(
                f"{final}: exists and is not a prepared corpus; choose another --name or --data, or remove it"
            )
        if state is FolderState.OTHER and not self.force:
            raise UserError(
                f"{final}: was prepared from other text or with other settings; --force builds it again, --name NAME "
                "writes beside it"
            )
        if state is FolderState.COMPLETE and not self.force:
            say(f"{final} is up to date")
            return True
        if final.is_symlink():
            raise UserError(
                f"{final}: is a link, and would be replaced by a folder; remove it, or build where it leads to with "
                "--data and --name"
            )
        if state is not FolderState.ABSENT and (others := folder.unexpected_files()):
            raise UserError(
                f"{final}: contains unexpected files ({others[0]}), and is replaced as a whole; move them away, or "
                "choose another --name"
            )
        return False


def open_shared(name: str, request: CorpusRequest) -> Corpus:
    """The prepared corpus `name`, whose sub-word models and dictionaries fit the requested corpus.

    Raises:
        UserError: the corpus is missing or damaged, or has other languages or another preparation.
    """
    settings, title, option = request.settings, request.path.stem, f"--subwords-of {name}"
    shared = open_corpus(name, request.data)
    if {*shared.languages} != {*settings.languages}:
        raise UserError(
            f"{option}: has the languages {' and '.join(shared.languages)}, but {title} {settings.source} and "
            f"{settings.target}; name a corpus of the same languages"
        )
    kind = "subword-nmt" if isinstance(settings, MosesBpeCorpus) else "sentencepiece"
    if shared.subwords.kind != kind:
        raise UserError(
            f"{option}: is segmented by {shared.subwords.kind}, but {title} is prepared with {kind}; name a corpus "
            "with the same preparation"
        )
    dictionaries = [str(shared.dictionary(language).relative_to(shared.folder)) for language in shared.languages]
    shared.verify(*dictionaries, *(file.name for file in shared.subword_files))
    return shared


def _with_subwords(settings: CorpusSettings, shared: Corpus) -> CorpusSettings:
    """`settings` with the values that the sub-word models of `shared` were learned with."""
    used = {key: value for key, value in shared.subwords.model_dump().items() if key in settings.subwords.model_dump()}
    return settings.model_copy(update={"subwords": settings.subwords.model_copy(update=used)})
