"""Who wants which events."""

import pytest

from cos_events.errors import SubscriptionError
from cos_events.subscription import Subscription


@pytest.mark.parametrize(
    ("modules", "event_types", "module", "event_type", "wanted"),
    [
        (None, None, "cc", "event_log", True),
        ({"cc"}, None, "cc", "prompt_trace", True),
        ({"cc"}, None, "pem", "prompt_trace", False),
        (None, {"event_log"}, "pem", "event_log", True),
        (None, {"event_log"}, "cc", "prompt_trace", False),
        ({"cc", "pem"}, {"event_log"}, "pem", "event_log", True),
        ({"cc", "pem"}, {"event_log"}, "pem", "prompt_trace", False),
        ({"cc"}, {"event_log"}, "pem", "event_log", False),
        (set(), None, "cc", "event_log", False),
    ],
)
def test_it_wants_what_both_its_filters_let_through(
    modules, event_types, module, event_type, wanted
) -> None:
    subscription = Subscription(
        "audit",
        None if modules is None else frozenset(modules),
        None if event_types is None else frozenset(event_types),
    )
    assert subscription.wants(module, event_type) is wanted


@pytest.mark.parametrize("name", ["a", "a1_b", "a" * 63])
def test_a_lower_case_identifier_is_a_name(name: str) -> None:
    assert Subscription(name, frozenset([name]), frozenset([name])).name == name


WRONG = ["", "A", "1a", "_a", "a-b", "a.b", "a b", "ä", "a" * 64, "a\n", None, 3]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_name_is_quoted_with_what_is_allowed(name) -> None:
    with pytest.raises(SubscriptionError) as refused:
        Subscription(name)
    assert f"{name!r} cannot name a subscription: use a lower-case letter" in str(refused.value)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_modules_and_event_types_are_refused_too(name) -> None:
    with pytest.raises(SubscriptionError, match="cannot name a module"):
        Subscription("audit", modules=frozenset(["cc", name]))
    with pytest.raises(SubscriptionError, match="cannot name an event type"):
        Subscription("audit", event_types=frozenset([name]))
