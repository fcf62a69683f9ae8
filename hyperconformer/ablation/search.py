"""Random and TPE search with Optuna: as many trials for every arm."""

import pathlib

from hyperconformer.ablation.plan import label
from hyperconformer.core.extras import import_extra
from hyperconformer.core.messages import unknown

SAMPLERS = ("random", "tpe")


class Trials:
    """The runs of a search, made one by one in answer to what earlier ones gave.

    Every arm has an Optuna study of its own. Trial number n of a random search draws
    the same point for every arm, whatever happened before: arms are compared pairwise,
    and an interrupted search goes on where it was. Several machines may search
    together with one ``storage``, see Optuna's documentation.

    Arguments
    ---------
    ablation : hyperconformer.ablation.plan.Ablation
        With a ``search``.
    store : hyperconformer.ablation.execute.Store
        Where results are.
    folder : str or pathlib.Path
        Where the studies are kept unless the search names a storage.
    extra : tuple of str
        Arguments for every run.
    create : bool
        False reads studies and writes nothing: one that is missing has no trials yet.

    Raises
    ------
    ImportError
        If Optuna is not installed.
    ValueError
        If the sampler is unknown or a part of the space is no distribution.
    """

    def __init__(self, ablation, store, folder, extra=(), create=True):
        self.optuna = optuna = import_extra("optuna", "train", "searches")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.ablation, self.store, self.extra = ablation, store, extra
        self.folder, self.create = pathlib.Path(folder), create
        if ablation.search.sampler not in SAMPLERS:
            raise ValueError(unknown("sampler", ablation.search.sampler, SAMPLERS))
        self.space = {
            name: self._distribution(name, choice)
            for name, choice in ablation.search.space.items()
        }
        self._studies = {}  # by the label of the arm
        self.trials = {}  # of this process: run key to study and number

    def left(self):
        """How many runs are left."""
        finished = sum(
            trial.state.is_finished()
            for _, study in self.studies()
            for trial in study.trials
        )
        return len(self.ablation.arms()) * self.ablation.search.trials - finished

    def studies(self):
        """The studies that exist.

        Returns
        -------
        list of (dict, optuna.study.Study)
            Each with its arm.
        """
        found = []
        for arm in self.ablation.arms():
            study = self._studies.get(label(arm)) or self._study(arm)
            if study is not None:
                self._studies[label(arm)] = study
                found.append((arm, study))
        return found

    def runs(self):
        """Yield runs until every arm has had its trials, arms taking turns."""
        left = self.studies()
        while left:
            for arm, study in tuple(left):
                run = self._abandoned(arm, study) or self._new(arm, study)
                if run is None:
                    left.remove((arm, study))
                else:
                    yield run

    def done(self, run, row):
        """Tell the study what a run gave."""
        if row is None:  # another process has it, and will tell
            return
        study, number = self.trials[run.key]
        value = row.get(f"valid_{self.ablation.metric}")
        if row["status"] == "done" and value is not None:
            study.tell(number, value)
        else:
            study.tell(number, state=self.optuna.trial.TrialState.FAIL)

    def planned(self):
        """Every trial that was begun.

        Returns
        -------
        list of (dict, Run)
            Each with its arm and, in it, the point.
        """
        return [
            ({**arm, **trial.params}, self._run(arm, trial.params))
            for arm, study in self.studies()
            for trial in study.trials
        ]

    def _run(self, arm, point):
        return self.ablation.run({**arm, **point}, self.ablation.seeds[0], self.extra)

    def _abandoned(self, arm, study):
        """A trial that a process began and left, dead or interrupted."""
        for trial in study.trials:
            run = self._run(arm, trial.params)
            if not trial.state.is_finished() and run.key not in self.trials:
                self.trials[run.key] = study, trial.number
                return run
        return None

    def _new(self, arm, study):
        number, search = len(study.trials), self.ablation.search
        if number >= search.trials:
            return None
        samplers = self.optuna.samplers
        kind = {"random": samplers.RandomSampler, "tpe": samplers.TPESampler}
        study.sampler = kind[search.sampler](seed=search.seed + number)
        trial = study.ask(self.space)
        run = self._run(arm, trial.params)
        self.trials[run.key] = study, trial.number
        return run

    def _study(self, arm):
        optuna = self.optuna
        storage = self.ablation.search.storage
        if storage is None:
            journal = self.folder / "studies.log"
            if not (self.create or journal.exists()):
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            backend = optuna.storages.journal.JournalFileBackend(str(journal))
            storage = optuna.storages.JournalStorage(backend)
        study = {
            "storage": storage,
            "study_name": f"{self.ablation.name}: {label(arm)}",
        }
        if self.create:
            return optuna.create_study(**study, load_if_exists=True)
        try:
            return optuna.load_study(**study)
        except KeyError:
            return None

    def _distribution(self, name, choice):
        distributions = self.optuna.distributions
        if isinstance(choice, list):
            return distributions.CategoricalDistribution(choice)
        if isinstance(choice, dict) and {"low", "high"} <= set(choice):
            whole = all(isinstance(choice[end], int) for end in ("low", "high"))
            kind = "IntDistribution" if whole else "FloatDistribution"
            return getattr(distributions, kind)(**choice)
        raise ValueError(
            f"search space of {name!r} must be a list of choices or {{low, high}} with "
            f"log or step, got {choice!r}"
        )
