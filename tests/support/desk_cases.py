"""A desk over a store and a decoder of its own, for tests of what people do."""

from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.sessions.ledger import Ledger
from anchorlwf.annotator.store.store import Store


class OpenDesk:
    """The desk of one project, with all that it works on."""

    def __init__(self, model, folder, config) -> None:
        self.model, self.config = model, config
        self.store = Store(str(folder / "store.db"))
        self.decoder = LocalDecoder(model, alternatives=config.alternatives)
        self.project = self.store.project("p", self.decoder.stamp)
        self.ledger = Ledger(self.decoder.stamp, model.codec)
        self.desk = Desk(self.store, self.decoder, self.project, config, self.ledger)

    def close(self) -> None:
        self.desk.close()
        self.decoder.close()
        self.store.close()
