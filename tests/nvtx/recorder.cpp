// A tool that listens to NVTX: it writes what it is told to the file that GPUCONV_NVTX_RECORD names, a line each.
//
//   domain    NAME
//   category  DOMAIN  NUMBER  NAME
//   string    DOMAIN  TEXT
//   push      THREAD  DOMAIN  CATEGORY  PAYLOAD  TEXT     (PAYLOAD is - for none, ? for any but a signed integer)
//   pop       THREAD  DOMAIN
//
// NVTX loads it by NVTX_INJECTION64_PATH. The few declarations below are those of its third version's binary
// interface, so that no CUDA toolkit is needed to compile this.

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>

namespace {

struct Domain {
  std::string name;
};

struct Text {
  std::string text;
};

// What a push is given; the size says how much of it the caller knows.
struct Attributes {
  uint16_t version;
  uint16_t size;
  uint32_t category;
  int32_t color_type;
  uint32_t color;
  int32_t payload_type;
  int32_t reserved;
  int64_t payload;
  int32_t message_type;
  const Text *message;
};

constexpr int32_t SIGNED_64_BITS = 2, REGISTERED = 3;

std::mutex turn;
std::FILE *record = nullptr;

int thread_number() {
  static int threads = 0;
  thread_local int number = ++threads;  // asked for under the mutex
  return number;
}

template <class... Values>
void write(const char *format, Values... values) {
  std::fprintf(record, format, values...);
  std::fflush(record);
}

Domain *create_domain(const char *name) {
  std::lock_guard<std::mutex> guard(turn);
  write("domain\t%s\n", name);
  return new Domain{name};
}

void name_category(Domain *domain, uint32_t number, const char *name) {
  std::lock_guard<std::mutex> guard(turn);
  write("category\t%s\t%" PRIu32 "\t%s\n", domain->name.c_str(), number, name);
}

Text *register_string(Domain *domain, const char *text) {
  std::lock_guard<std::mutex> guard(turn);
  write("string\t%s\t%s\n", domain->name.c_str(), text);
  return new Text{text};
}

int push(Domain *domain, const Attributes *range) {
  std::lock_guard<std::mutex> guard(turn);
  std::string payload = range->payload_type == SIGNED_64_BITS ? std::to_string(range->payload)
                        : range->payload_type                 ? "?"
                                                              : "-";
  const char *text = range->message_type == REGISTERED ? range->message->text.c_str() : "not registered";
  write("push\t%d\t%s\t%" PRIu32 "\t%s\t%s\n", thread_number(), domain->name.c_str(), range->category,
        payload.c_str(), text);
  return 0;
}

int pop(Domain *domain) {
  std::lock_guard<std::mutex> guard(turn);
  write("pop\t%d\t%s\n", thread_number(), domain->name.c_str());
  return 0;
}

using Function = void (*)();

struct Callbacks {
  size_t size;
  int (*module_table)(int module, Function ***table, unsigned *count);
};

// Numbers of NVTX: its table of callbacks; the functions on domains among these; each one's place there.
constexpr uint32_t CALLBACKS = 1;
constexpr int ON_DOMAINS = 5;
enum { PUSH = 4, POP = 5, NAME_CATEGORY = 8, REGISTER_STRING = 10, CREATE_DOMAIN = 12 };

}  // namespace

// Called once by each library that NVTX is compiled into. Returns whether it will listen.
extern "C" int InitializeInjectionNvtx2(const void *(*export_table)(uint32_t)) {
  auto callbacks = static_cast<const Callbacks *>(export_table(CALLBACKS));
  Function **table = nullptr;
  unsigned count = 0;
  if (!callbacks || !callbacks->module_table(ON_DOMAINS, &table, &count) || count <= CREATE_DOMAIN) return 0;
  std::lock_guard<std::mutex> guard(turn);
  const char *path = std::getenv("GPUCONV_NVTX_RECORD");
  if (!record && (!path || !(record = std::fopen(path, "w")))) return 0;
  *table[PUSH] = reinterpret_cast<Function>(push);
  *table[POP] = reinterpret_cast<Function>(pop);
  *table[NAME_CATEGORY] = reinterpret_cast<Function>(name_category);
  *table[REGISTER_STRING] = reinterpret_cast<Function>(register_string);
  *table[CREATE_DOMAIN] = reinterpret_cast<Function>(create_domain);
  return 1;
}
