"""Reading llama-server's arguments from C++, and comparing them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from base_images.errors import SourceError
from base_images.recipes import argument_changes, server_arguments
from base_images.recipes.argument_changes import Source
from base_images.recipes.server_arguments import DEFAULTS, FILES, Argument

COMMON_H = """
enum common_mode { COMMON_MODE_NONE, COMMON_MODE_DRAFT_FAST, COMMON_MODE_COUNT };
struct common_params_sampling {
    float temp = 0.80f;  // a comment
};
struct common_params {
    int32_t n_parallel = 1;
    int32_t port = 8080, n_ctx = 4 * 1024;
    bool no_mmap = false;
    bool jinja = true;
    enum llama_split_mode split_mode = LLAMA_SPLIT_MODE_LAYER;
    ggml_type cache_type_k = GGML_TYPE_F16;
    std::vector<enum common_mode> modes = { COMMON_MODE_NONE };
    std::vector<std::string> hosts = {"127.0.0.1"};
    std::string methods = "GET, POST";
    std::vector<size_t> target = std::vector<size_t>(max_devices(), 1024*1024);
    struct common_params_sampling sampling;
};
"""

ARG_CPP = r"""
static std::initializer_list<enum llama_example> both = { LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_SERVER, };
const std::vector<ggml_type> cache_types = { GGML_TYPE_F16, GGML_TYPE_Q8_0, };
static ggml_type cache_type(const std::string & s) { for (auto & type : cache_types) { if (s == "x") { } } }
[[noreturn]] static void arg_removed(const std::string & msg) { throw std::invalid_argument(msg); }

common_params_context common_params_parser_init(common_params & params, llama_example ex, void(*print)(int, char **)) {
    if (ex == LLAMA_EXAMPLE_CLI) {
        params.port = 1;
    } else if (ex == LLAMA_EXAMPLE_SERVER) {
        params.n_parallel = -1;
    }
    auto add_opt = [&](common_arg arg) { ctx.options.push_back(arg); };

    add_opt(common_arg(
        {"-p", "--port"}, "PORT",
        string_format("port to listen (default: %d, 0 = any)", params.port),
        [](common_params & params, int value) { params.port = value; }
    ).set_examples({LLAMA_EXAMPLE_SERVER}).set_env("LLAMA_ARG_PORT"));
    add_opt(common_arg(
        {"--mmap"},
        {"--no-mmap"},
        string_format("map the model (default: %s)", params.no_mmap ? "disabled" : "enabled"),
        [](common_params & params, bool value) { params.no_mmap = !value; }
    ).set_env("LLAMA_ARG_MMAP"));
    add_opt(common_arg(
        // a comment
        {"-sm", "--split-mode"}, "{none,layer,row}",
        "how to split:\n"
        "- layer (default): by layer",
        [](common_params & params, const std::string & value) {
            /**/ if (value == "none") { params.split_mode = LLAMA_SPLIT_MODE_NONE; }
            else if (value == "layer") { params.split_mode = LLAMA_SPLIT_MODE_LAYER; }
            else if (value == "row") { params.split_mode = LLAMA_SPLIT_MODE_ROW; }
            else { throw std::invalid_argument("invalid value"); }
        }
    ));
    add_opt(common_arg(
        {"-ctk", "--cache-type-k"}, "TYPE",
        string_format("type (default: %s)", ggml_type_name(params.cache_type_k)),
        [](common_params & params, const std::string & value) { params.cache_type_k = cache_type(value); }
    ));
    add_opt(common_arg(
        {"--modes"}, all_modes(), string_format("modes (default: %s)", common_mode_name_str(params.modes).c_str()),
        [](common_params & params, const std::string & value) { params.modes.push_back(modes_from(value)); }
    ));
    add_opt(common_arg(
        {"--color"}, "[on|off|auto]", "colours ('on', 'off', or 'auto', default: 'auto')",
        [](common_params & params, const std::string & value) {
            if (is_truthy(value)) { } else if (is_falsey(value)) { } else if (is_autoy(value)) { }
        }
    ).set_examples(both));
    add_opt(common_arg(
        {"--methods"}, "METHODS", string_format("methods (default: %s)", params.methods.c_str()),
        [](common_params & params, const std::string & value) { params.methods = value; }
    ));
    add_opt(common_arg(
        {"--host"}, "HOST", string_format("%d%% of hosts (default: %s)", 5, params.hosts[0].c_str()),
        [](common_params & params, const std::string & value) { params.hosts = {value}; }
    ));
    add_opt(common_arg(
        {"--target"}, "MiB", string_format("margin, default: %" PRIu32 " MiB", params.target[0]/(1024*1024)),
        [](common_params & params, const std::string & value) { }
    ));
    add_opt(common_arg(
        {"--tools"}, "TOOL,...", "tools (default: no tools)\navailable tools: read_file, get_time\nnote: none",
        [](common_params & params, const std::string & value) { params.tools = csv(value); }
    ));
    add_opt(common_arg(
        {"--temp"}, "N", string_format("temperature (default: %.2f)", (double)params.sampling.temp),
        [](common_params & params, const std::string & value) { params.sampling.temp = std::stof(value); }
    ).set_sampling());
    add_opt(common_arg(
        {"--range"}, "START", "END", "from start to end (default: same as --port)",
        [](common_params & params, const std::string & a, const std::string & b) { }
    ));
    add_opt(common_arg(
        {"--draft"}, "N", "the argument has been removed.\nuse --modes",
        [](common_params &, int) { arg_removed("use --modes"); }
    ).set_env("LLAMA_ARG_DRAFT"));
    add_opt(common_arg({"--simple-io"}, "simple", [](common_params & p) { }).set_examples({LLAMA_EXAMPLE_CLI}));
    add_opt(common_arg({"--prompt"}, "p", [](common_params & p) { }).set_excludes({LLAMA_EXAMPLE_SERVER}));
    if (ex == LLAMA_EXAMPLE_SERVER) {
        add_opt(common_arg(
            {"-np", "--parallel"}, "N",
            string_format("slots (default: %d, -1 = auto)", params.n_parallel),
            [](common_params & params, int value) { params.n_parallel = value; }
        ).set_env("LLAMA_ARG_N_PARALLEL").set_examples({LLAMA_EXAMPLE_SERVER}));
    } else {
        add_opt(common_arg({"--sequences"}, "N", "sequences", [](common_params & params, int value) { }));
    }
    if (llama_supports_rpc()) {
        add_opt(common_arg({"--rpc"}, "SERVERS", "servers", [](common_params &, const std::string &) { }));
    }
#if defined(LLAMA_CURL)
    add_opt(common_arg({"--curl"}, "of some builds", [](common_params & p) { }));
#endif
#ifndef _WIN32
    add_opt(common_arg({"--posix"}, "of some systems", [](common_params & p) { }));
#endif
    return ctx;
}

void common_params_add_preset_options(std::vector<common_arg> & args) {
    args.push_back(common_arg({"load-on-startup"}, "NAME", "presets", [](common_params &, const std::string &) { }));
}
"""


def read(arg_cpp: str = ARG_CPP, common_h: str = COMMON_H) -> dict[str, Argument]:
    return {argument.names[-1]: argument for argument in server_arguments.read(arg_cpp, common_h)}


def test_arguments_of_llama_server() -> None:
    found = read()
    first = "port mmap split-mode cache-type-k modes color methods host target tools temp range draft parallel"
    assert list(found) == [f"--{name}" for name in [*first.split(), "rpc", "curl", "posix"]]
    assert found["--port"] == Argument(
        names=("-p", "--port"),
        environment=("LLAMA_ARG_PORT",),
        hints=("PORT",),
        default="8080",
        parameter="port",
        initial="8080",
    )
    assert found["--mmap"] == Argument(
        names=("--mmap",),
        negated=("--no-mmap",),
        environment=("LLAMA_ARG_MMAP", "LLAMA_ARG_NO_MMAP"),
        default="enabled",
        parameter="no_mmap",
        initial="true",
    )
    assert found["--range"].hints == ("START", "END")


@pytest.mark.parametrize(
    ("name", "default", "initial"),
    [
        ("--split-mode", "", "layer"),
        ("--cache-type-k", "f16", "f16"),
        ("--modes", "", "COMMON_MODE_NONE"),
        ("--color", "auto", ""),
        ("--methods", "GET, POST", "GET, POST"),
        ("--host", "127.0.0.1", "127.0.0.1"),
        ("--target", "1 MiB", ""),
        ("--tools", "no tools", "params.tools"),
        ("--temp", "0.8", "0.8"),
        ("--range", "same as --port", ""),
        ("--parallel", "-1", "-1"),
    ],
)
def test_defaults(name: str, default: str, initial: str) -> None:
    assert (read()[name].default, read()[name].initial) == (default, initial)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("--port", ()),
        ("--split-mode", ("none", "layer", "row")),
        ("--cache-type-k", ("f16", "q8_0")),
        ("--modes", ("COMMON_MODE_NONE", "COMMON_MODE_DRAFT_FAST")),
        ("--color", ("on", "off", "auto")),
        ("--tools", ("read_file", "get_time")),
    ],
)
def test_values(name: str, values: tuple[str, ...]) -> None:
    assert read()[name].values == values


def test_conditional_and_refused_arguments() -> None:
    found = read()
    assert {name: argument.condition for name, argument in found.items() if argument.condition} == {
        "--rpc": "llama_supports_rpc()",
        "--curl": "defined(LLAMA_CURL)",
        "--posix": "not _WIN32",
    }
    assert {name: argument.refused for name, argument in found.items() if argument.refused} == {
        "--draft": "use --modes"
    }


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("a port", ""),
        ("use default model", ""),
        ("defaults to linear", ""),
        ("a (default: enabled, requires b)", "enabled"),
        ("a ('on' or 'off', default: 'auto' (detect from template))", "auto"),
        ("a (default: same as --a)", "same as --a"),
        ('a (default: "")', "empty"),
        ("a (Default: 5). More (default: 6)", "5"),
        ("a, default=5; more", "5"),
        ("a (default: taken from (the) model)", "taken from (the) model"),
        ("a (default: 0 = of the\n model)", "0"),
        ("a default: 5\nmore", "5"),
    ],
)
def test_the_default_in_a_help_text(text: str, default: str) -> None:
    assert server_arguments.stated(text) == default


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("common_params_parser_init(", "parser_init(", "has no common_params_parser_init"),
        ('"PORT",\n', '"PORT" )\n', r"common/arg\.cpp cannot be parsed as C\+\+ at line \d+"),
        (
            'add_opt(common_arg(\n        {"-p"',
            'add_opt(make(\n        {"-p"',
            r"line \d+: what is added is not common_arg",
        ),
        ('{"-p", "--port"}', "port_names()", r"line \d+: there is port_names\(\) where there were lists"),
        ('{"-p", "--port"}', '{"-p", port_name}', r"line \d+: not every name of -p, port_name is a literal"),
        ('set_env("LLAMA_ARG_PORT")', "set_env(PORT)", r"line \d+: not every name of PORT is a literal"),
        ("set_examples(both)", "set_examples(others)", r"line \d+, set_examples: there is others where"),
        ("add_opt(", "add(", "adds no argument"),
    ],
)
def test_an_unknown_form_of_the_source_is_an_error(old: str, new: str, message: str) -> None:
    assert old in ARG_CPP
    with pytest.raises(SourceError, match=message):
        server_arguments.read(ARG_CPP.replace(old, new), COMMON_H)


def test_an_unknown_form_of_the_header_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"common/common\.h has no struct common_params"):
        server_arguments.read(ARG_CPP, "struct other { };")
    with pytest.raises(SourceError, match=r"common/common\.h cannot be parsed as C\+\+ at line \d+"):
        server_arguments.read(ARG_CPP, COMMON_H.replace("int32_t port = 8080,", "int32_t port = = 8080,"))


# What changed.


def changed(old: str, new: str, used: tuple[str, ...] = ()) -> list[str]:
    """Returns the reported changes after a replacement in one of the two files."""
    assert (old in ARG_CPP) is not (old in COMMON_H), old
    before = Source(name="b1", texts=dict(zip(FILES, (ARG_CPP, COMMON_H), strict=True)))
    after = Source(name="b2", texts={path: text.replace(old, new) for path, text in before.texts.items()})
    report = argument_changes.compare(before, after, dict.fromkeys(used, ()))
    assert not report.not_compared
    return [str(change) for change in report.changes]


PORT = ARG_CPP[
    ARG_CPP.index('    add_opt(common_arg(\n        {"-p"') : ARG_CPP.index(
        '    add_opt(common_arg(\n        {"--mmap"'
    )
]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (PORT, "", "-p, --port, LLAMA_ARG_PORT: gone"),
        (
            PORT,
            PORT + PORT.replace('"-p", "--port"', '"--gate"').replace("ARG_PORT", "ARG_GATE"),
            "--gate, LLAMA_ARG_GATE: appeared; takes PORT; default 8080",
        ),
        ('"-p", "--port"', '"--gate"', ["-p, --port: gone; now --gate", "--gate: appeared; formerly --port"]),
        ('{"-p", "--port"}', '{"--port"}', "-p: gone; --port stays"),
        ('{"-p", "--port"}', '{"-p", "--port", "--listen"}', "--listen: appeared; of --port"),
        ('        {"--no-mmap"},\n', "", "--no-mmap, LLAMA_ARG_NO_MMAP: gone; --mmap stays"),
        ('{"--no-mmap"}', '{"-nm", "--no-mmap"}', "-nm: appeared; of --mmap"),
        ('.set_env("LLAMA_ARG_PORT")', "", "LLAMA_ARG_PORT: gone; --port stays"),
        (
            "LLAMA_ARG_N_PARALLEL",
            "LLAMA_ARG_SLOTS",
            ["LLAMA_ARG_N_PARALLEL: gone; --parallel stays", "LLAMA_ARG_SLOTS: appeared; of --parallel"],
        ),
        ("port = 8080", "port = 9931", "--port: default 8080 -> 9931"),
        ("params.n_parallel = -1;", "params.n_parallel = 4;", "--parallel: default -1 -> 4"),
        ("temp = 0.80f", "temp = 0.805f", "--temp: default 0.8 -> 0.805"),
        ("no_mmap = false", "no_mmap = true", "--mmap: default enabled -> disabled"),
        ("GET, POST", "GET, PUT", "--methods: default GET, POST -> GET, PUT"),
        ("same as --port", "8080", "--range: default same as --port -> 8080"),
        (
            "llama_split_mode split_mode = LLAMA_SPLIT_MODE_LAYER",
            "llama_split_mode split_mode = LLAMA_SPLIT_MODE_ROW",
            "--split-mode: default layer -> row",
        ),
        ("jinja = true", "jinja = false", []),
        (
            "{ COMMON_MODE_NONE };",
            "{ COMMON_MODE_DRAFT_FAST };",
            "--modes: default COMMON_MODE_NONE -> COMMON_MODE_DRAFT_FAST",
        ),
        ('"127.0.0.1"', '"::"', "--host: default 127.0.0.1 -> ::"),
        ('if (value == "row")', 'if (value == "tensor")', "--split-mode: values no longer row, now also tensor"),
        (
            "{none,layer,row}",
            "{none,layer}",
            "--split-mode: values that its hint lists {none,layer,row} -> {none,layer}",
        ),
        (" GGML_TYPE_Q8_0, }", " GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }", "--cache-type-k: values now also q4_0"),
        ("COMMON_MODE_COUNT", "COMMON_MODE_SLOW, COMMON_MODE_COUNT", "--modes: values now also COMMON_MODE_SLOW"),
        ("else if (is_autoy(value)) { }", "", "--color: values no longer auto"),
        ("read_file, get_time", "read_file", "--tools: values no longer get_time"),
        ('"START", "END"', '"START"', "--range: takes START END -> START"),
        ('"[on|off|auto]", "colours', '"colours', "--color: takes [on|off|auto] -> no value"),
        ("LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_SERVER, }", "LLAMA_EXAMPLE_CLI }", "--color: gone"),
        (".set_excludes({LLAMA_EXAMPLE_SERVER})", "", "--prompt: appeared; takes no value"),
        ("if (llama_supports_rpc())", "", "--rpc: there only if llama_supports_rpc() -> always"),
        (
            "{ params.port = value; }",
            '{ arg_removed("use --host"); }',
            "-p, --port, LLAMA_ARG_PORT: gone; llama-server refuses it: use --host",
        ),
        ('{ arg_removed("use --modes"); }', "{ }", "--draft, LLAMA_ARG_DRAFT: appeared; takes N"),
    ],
)
def test_each_change_is_reported_once(old: str, new: str, expected: str | list[str]) -> None:
    assert changed(old, new) == ([expected] if isinstance(expected, str) else expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("port to listen (default: %d, 0 = any)", "the port (0 is any) that is listened on (default: %d, of all)"),
        ("map the model (default", "whether to map it; default"),
        ('? "disabled" : "enabled"', '? "false" : "true"'),
        ("(default: %.2f)", "(default: %.1f)"),
        ('"PORT",', '"N",'),
        ("{none,layer,row}", "[none|layer|row]"),
        ("{none,layer,row}", "{row,none,layer}"),
        ("        // a comment\n", "/* another\n */"),
        ('{"-p", "--port"}, "PORT",\n', '{ "-p",\n"--port", }, "P" "ORT", // here\n'),
        ('{"-p", "--port"}', '{"--port", "-p"}'),
        ("by layer", "by layer: any (default), or none"),
        ("{ GGML_TYPE_F16, GGML_TYPE_Q8_0, }", "{ GGML_TYPE_Q8_0, GGML_TYPE_F16 }"),
        ("float temp = 0.80f;  // a comment", "double temp = 8e-1; // warmer"),
        ("port = 8080, n_ctx = 4 * 1024;", "port = 0x1F90, n_ctx = 4096;"),
        ("bool jinja = true;", ""),
        ("modes_from(value)", "from(value)"),
        (PORT, ""),  # moved to the end
    ],
)
def test_equivalent_sources_have_no_changes(old: str, new: str) -> None:
    if old == PORT:
        end = "    return ctx;"
        moved = ARG_CPP.replace(PORT, "").replace(end, PORT + end)
        assert argument_changes.changes(read().values(), read(moved).values()) == ()
    else:
        assert changed(old, new) == []


def test_a_name_that_moves_to_another_argument() -> None:
    moved = ARG_CPP.replace('{"-p", "--port"}', '{"--port"}').replace('{"--range"}', '{"-p", "--range"}')
    found = [str(change) for change in argument_changes.changes(read().values(), read(moved).values())]
    assert found == ["-p: of --port -> of --range"]


def test_two_arguments_that_become_one() -> None:
    before = (Argument(names=("--a",), hints=("N",), default="1"), Argument(names=("--b",), hints=("N",), default="2"))
    after = (Argument(names=("--a", "--b"), hints=("N",), default="1"),)
    assert [str(change) for change in argument_changes.changes(before, after)] == ["--a: default 2 -> 1"]
    assert [str(change) for change in argument_changes.changes(after, before)] == ["--b: default 1 -> 2"]


def test_an_argument_in_both_branches_of_a_condition() -> None:
    before = ARG_CPP.replace(
        "    if (llama_supports_rpc()) {", PORT.join(("    if (llama_supports_rpc()) {", "    } else {")), 1
    ).replace(PORT, PORT.replace("to listen", "of RPC"), 1)
    after = before.replace('PORT",\n        string_format("port of RPC', 'PORT",\n        string_format("the port')
    found = [argument for argument in server_arguments.read(before, COMMON_H) if "--port" in argument.names]
    assert [argument.condition for argument in found] == ["", "llama_supports_rpc()"]
    assert argument_changes.changes(read(before).values(), read(after).values()) == ()


def test_changes_that_the_consumer_uses_come_first() -> None:
    new = ARG_CPP.replace(PORT, "").replace('{"--no-mmap"}', "{}").replace("row}", "row,tensor}")
    used: argument_changes.Used = dict.fromkeys(("--no-mmap", "-sm", "--other"), ())
    found = argument_changes.changes(read().values(), read(new).values(), used)
    assert [(str(change), change.used) for change in found] == [
        ("--no-mmap, LLAMA_ARG_NO_MMAP: gone; --mmap stays", True),
        ("--split-mode: values that its hint lists {none,layer,row} -> {none,layer,row,tensor}", True),
        ("-p, --port, LLAMA_ARG_PORT: gone", False),
    ]
    assert found[0].as_dict() == {
        "change": "gone",
        "names": ["--no-mmap", "LLAMA_ARG_NO_MMAP"],
        "detail": "--mmap stays",
        "used": True,
    }


FLAG = Argument(names=("-fa", "--flash-attn"))
CHOICE = replace(FLAG, hints=("[on|off|auto]",), values=("on", "off", "auto"))
MODE = Argument(names=("-sm", "--split-mode"), hints=("MODE",), values=("none", "layer", "row"), default="layer")


@pytest.mark.parametrize(
    ("before", "after", "used", "breaks"),
    [
        (FLAG, CHOICE, {"--flash-attn": {()}}, ["--flash-attn"]),
        (CHOICE, FLAG, {"-fa": {("on",)}}, ["-fa on"]),
        (
            CHOICE,
            replace(CHOICE, hints=("[on|off]",), values=("on", "off")),
            {"-fa": {("on",), ("auto",)}},
            ["-fa auto"],
        ),
        (MODE, replace(MODE, values=("none", "layer")), {"-sm": {("row",)}}, ["-sm row"]),
        # What he passes is still taken, was refused before too, or is no word that the source lists.
        (MODE, replace(MODE, values=("none", "layer")), {"-sm": {("layer",)}}, []),
        (MODE, replace(MODE, default="row"), {"-sm": {("layer",)}}, []),
        (CHOICE, replace(CHOICE, values=("on", "off")), {"-fa": {()}}, []),
        (MODE, replace(MODE, values=()), {"-sm": {("row",)}}, []),
        (FLAG, CHOICE, {"--other": {()}}, []),
    ],
)
def test_what_the_consumer_passes_and_is_refused_now(
    before: Argument, after: Argument, used: argument_changes.Used, breaks: list[str]
) -> None:
    [change] = argument_changes.changes([before], [after], used)
    assert sorted(change.breaks) == breaks


def test_a_changed_initial_value_with_the_same_help() -> None:
    literal = ARG_CPP.replace(
        'string_format("methods (default: %s)", params.methods.c_str())', '"methods (default: GET)"'
    )
    before, after = (read(literal, header) for header in (COMMON_H, COMMON_H.replace("GET, POST", "GET, PUT")))
    found = [str(change) for change in argument_changes.changes(before.values(), after.values())]
    assert found == ["--methods: default GET, POST -> GET, PUT, though its help says GET"]


def test_a_parameter_that_moved_to_another_file() -> None:
    found = changed("struct common_params_sampling sampling;", "other_sampling sampling;")
    assert found == ["--temp: default 0.8 -> params.sampling.temp"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "llama-server's arguments cannot be compared: b2 has no common/arg.cpp."),
        ({FILES[0]: ARG_CPP}, "llama-server's arguments cannot be compared: b2 has no common/common.h."),
        (
            {FILES[0]: "int main() {}", DEFAULTS: COMMON_H},
            (
                "llama-server's arguments cannot be compared: of b2 common/arg.cpp has no common_params_parser_init, "
                "which its arguments were read from so far."
            ),
        ),
    ],
)
def test_trees_that_cannot_be_compared(texts: dict[str, str], message: str) -> None:
    whole = Source(name="b1", texts={FILES[0]: ARG_CPP, DEFAULTS: COMMON_H})
    report = argument_changes.compare(whole, Source(name="b2", texts=texts))
    assert report.as_dict() == {"changes": [], "breaks": [], "not_compared": message}
