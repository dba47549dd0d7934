// llama.cpp's tests/test-backend-ops.cpp as it is, and what it lacks:
// - `--list` prints the devices, with the file of each one's backend, and how many cases each operation has. Fused
//   operations are among them, which its own `support` leaves out.
// - `-b other-cpus` tests every CPU backend that this machine can run but the best one, with which all are compared: by
//   itself it loads the best one alone. Their devices are all called CPU, so here they have that name.

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <dlfcn.h>
#include <filesystem>
#include <string>
#include <vector>

static const char * OTHERS = "other-cpus";

static const char * device_name(ggml_backend_dev_t device) {
    const bool other = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU &&
                       device != ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return other ? OTHERS : ggml_backend_dev_name(device);
}

#define ggml_backend_dev_name device_name
#define main test_backend_ops
#include "tests/test-backend-ops.cpp"
#undef main
#undef ggml_backend_dev_name

static void load_others() {
    std::vector<std::string> files;
    const auto directory = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    for (const auto & entry : std::filesystem::directory_iterator(directory)) {
        if (entry.path().filename().string().rfind("libggml-cpu-", 0) == 0) {
            files.push_back(entry.path().string());
        }
    }
    std::sort(files.begin(), files.end());
    ggml_backend_load_all();  // the best one first
    for (const auto & file : files) {
        ggml_backend_load(file.c_str());  // nothing is loaded twice, nor what this machine cannot run
    }
}

static int list() {
    load_others();
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        Dl_info file = {};
        dladdr(ggml_backend_dev_backend_reg(device), &file);
        printf("device\t%s\t%s\t%s\n", device_name(device), ggml_backend_dev_description(device),
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
    if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
        return list();
    }
    for (int i = 1; i < argc; i++) {
        if (std::strcmp(argv[i], OTHERS) == 0) {
            load_others();
        }
    }
    return test_backend_ops(argc, argv);
}
