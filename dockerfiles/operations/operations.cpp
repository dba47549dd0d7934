// llama.cpp's tests/test-backend-ops.cpp as it is, and what it lacks:
// - `--list` prints the devices, with the file of each one's backend, and how many cases each operation has. Fused
//   operations are among them, which its own `support` leaves out.
// - Of two CPU backends, which it both calls CPU, the second one, that of GGML_BACKEND_PATH, is called by its file, so
//   that `-b` can name it. The first one, the best for this machine, is what everything is compared with.

#include "ggml-backend.h"

#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <filesystem>

static const char * device_name(ggml_backend_dev_t device) {
    const char * path = std::getenv("GGML_BACKEND_PATH");
    if (path == nullptr || ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU ||
        device == ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        return ggml_backend_dev_name(device);
    }
    const char * slash = std::strrchr(path, '/');
    return slash == nullptr ? path : slash + 1;
}

#define ggml_backend_dev_name device_name
#define main test_backend_ops
#include "tests/test-backend-ops.cpp"
#undef main
#undef ggml_backend_dev_name

static int list() {
    const auto directory = std::filesystem::read_symlink("/proc/self/exe").parent_path();

    ggml_backend_load_all();
    for (const auto & entry : std::filesystem::directory_iterator(directory)) {
        if (entry.path().filename().string().rfind("libggml-cpu-", 0) == 0) {
            ggml_backend_load(entry.path().c_str());  // nothing is loaded twice, nor what this machine cannot run
        }
    }
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        Dl_info file = {};
        dladdr(ggml_backend_dev_backend_reg(device), &file);
        printf("device\t%s\t%s\t%s\n", ggml_backend_dev_name(device), ggml_backend_dev_description(device),
               file.dli_fname == nullptr ? "" : file.dli_fname);
    }

    const ggml_init_params params = { ggml_tensor_overhead()*128 + ggml_graph_overhead(), nullptr, true };
    std::map<std::string, int> counts;
    for (auto & test : make_test_cases_eval()) {
        ggml_context_ptr context(ggml_init(params));
        ggml_context_ptr weights(ggml_init(params));
        test->mode = MODE_TEST;
        counts[test->op_desc(test->build_graph(context.get(), weights.get()))]++;
    }
    for (const auto & [operation, cases] : counts) {
        printf("cases\t%s\t%d\n", operation.c_str(), cases);
    }
    return 0;
}

int main(int argc, char ** argv) {
    return argc == 2 && std::strcmp(argv[1], "--list") == 0 ? list() : test_backend_ops(argc, argv);
}
