// Plays the part of mesos-agent and libmesos towards the hook module, for what
// no published libmesos lets us test: the old std::string, Mesos 1.0 to 1.3, and
// hosts that do not fit together. The layouts are our own rendering of Mesos'
// headers; it proves that module and layouts agree, under a real C++ compiler and
// with both strings.
//
//   g++ -std=c++11 -rdynamic -DMINOR=N [-D_GLIBCXX_USE_CXX11_ABI=0] stand-in.cc -ldl
//   a.out MODULE.so VERSION [KEY VALUE]...
//
// Exit status: 0 all methods called; 3 refused by version, 4 by compatible(),
// 5 by create(); other: a defect.
// -DNO_STRINGS: no function tells the layout of strings. -DTASK_STATUS=N: a wrong
// size. -DNO_REMOVE: no HookManager::slaveRemoveExecutorHook.
#include <dlfcn.h>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#define CHECK(x) do { if (!(x)) { printf("stand-in: line %d: %s\n", __LINE__, #x); exit(1); } } while (0)

template <typename T> struct Option {
  enum State { SOME = 0, NONE = 1 } state;
  union { T t; };
  Option() : state(NONE) {}
  Option(const Option& o) : state(o.state) { if (state == SOME) new (&t) T(o.t); }
  ~Option() { CHECK(state == SOME || state == NONE); if (state == SOME) t.~T(); }
};
struct Error { std::string message; };
struct Nothing {};
template <typename T> struct Try { Option<T> data; Option<Error> error; };
template <typename T> struct Result { Try<Option<T>> data; };

namespace process {
template <typename T> struct Future {
  struct Data {
    std::atomic_flag lock;
    enum State { PENDING, READY, FAILED, DISCARDED } state;
    bool discard, associated;
#if MINOR >= 5
    bool abandoned;
#endif
    Result<T> result;
    std::vector<void*> callbacks[MINOR >= 5 ? 6 : 5];
  };
  std::shared_ptr<Data> data;
};
}

struct Any { void* vptr; const char* wire; int length; int size; };

namespace google { namespace protobuf {
struct MessageLite {
  bool SerializePartialToArray(void* to, int n) const {
    auto a = (const Any*) this;
    if (n != a->length) return false;
    memcpy(to, a->wire, n);
    return true;
  }
};
struct Message {
#if MINOR >= 4
  size_t SpaceUsedLong() const { return ((const Any*) this)->size; }
#else
  int SpaceUsed() const { return ((const Any*) this)->size; }
#endif
};
}}
// Emit the inline functions.
auto keep_serialize = &google::protobuf::MessageLite::SerializePartialToArray;
#if MINOR >= 4
auto keep_space = &google::protobuf::Message::SpaceUsedLong;
#define BYTE_SIZE ByteSizeLong
typedef size_t Size;
#else
auto keep_space = &google::protobuf::Message::SpaceUsed;
#define BYTE_SIZE ByteSize
typedef int Size;
#endif

#define MESSAGE(NAME, SIZE) \
  struct NAME { \
    Any any; char rest[(SIZE) - sizeof(Any)]; \
    NAME(const std::string& wire = "") : any{0, strdup(wire.c_str()), (int) wire.size(), SIZE} {} \
    Size BYTE_SIZE() const; \
    static const NAME& default_instance(); \
  }; \
  const NAME& NAME::default_instance() { static NAME n; return n; } \
  Size NAME::BYTE_SIZE() const { return any.length; }
#ifndef TASK_STATUS
#define TASK_STATUS (MINOR == 0 ? 112 : MINOR == 1 ? 120 : MINOR <= 4 ? 128 : 136)
#endif

namespace mesos {
MESSAGE(Labels, 48) MESSAGE(Environment, 48) MESSAGE(TaskStatus, TASK_STATUS) MESSAGE(Parameters, 48)
MESSAGE(FrameworkInfo, 200) MESSAGE(ExecutorInfo, 200) MESSAGE(TaskInfo, 200) MESSAGE(SlaveInfo, 200)
MESSAGE(FrameworkID, 48) MESSAGE(ContainerID, 48) MESSAGE(ContainerInfo, 200) MESSAGE(CommandInfo, 200)
struct Attributes { void* p[3]; };
struct Resources { void* p[MINOR >= 10 ? 33 : 3]; };
#if MINOR >= 2
MESSAGE(DockerTaskExecutorPrepareInfo, 40)
typedef DockerTaskExecutorPrepareInfo Prepared;
#else
typedef Environment Prepared;
#endif
typedef const Option<std::map<std::string, std::string>>& Env;

struct Hook {
  virtual ~Hook() {}
  virtual Result<Labels> masterLaunchTaskLabelDecorator(const TaskInfo&, const FrameworkInfo&, const SlaveInfo&) = 0;
#if MINOR >= 8
  virtual Result<Resources> masterLaunchTaskResourceDecorator(const TaskInfo&, const Resources&) = 0;
#endif
  virtual Result<Labels> slaveRunTaskLabelDecorator(const TaskInfo&, const ExecutorInfo&, const FrameworkInfo&, const SlaveInfo&) = 0;
  virtual Try<Nothing> masterSlaveLostHook(const SlaveInfo&) = 0;
  virtual Result<Environment> slaveExecutorEnvironmentDecorator(const ExecutorInfo&) = 0;
  virtual process::Future<Option<Prepared>> prepare(
      const Option<TaskInfo>&, const ExecutorInfo&, const std::string&, const std::string&, const std::string&, Env) = 0;
#if MINOR < 2
  virtual Try<Nothing> slavePreLaunchDockerHook(
      const ContainerInfo&, const CommandInfo&, const Option<TaskInfo>&, const ExecutorInfo&,
      const std::string&, const std::string&, const std::string&, const Option<Resources>&, Env) = 0;
#endif
  virtual Try<Nothing> slavePostFetchHook(const ContainerID&, const std::string&) = 0;
  virtual Try<Nothing> slaveRemoveExecutorHook(const FrameworkInfo&, const ExecutorInfo&) = 0;
  virtual Result<TaskStatus> slaveTaskStatusDecorator(const FrameworkID&, const TaskStatus&) = 0;
  virtual Result<Resources> slaveResourcesDecorator(const SlaveInfo&) = 0;
  virtual Result<Attributes> slaveAttributesDecorator(const SlaveInfo&) = 0;
};

namespace modules {
struct ModuleManager { static std::unordered_map<std::string, std::string> kindToVersion; };
std::unordered_map<std::string, std::string> ModuleManager::kindToVersion;
}
namespace internal {
struct HookManager {
#ifndef NO_STRINGS
  static void initialize(const std::string&);
#endif
#ifndef NO_REMOVE
  static void slaveRemoveExecutorHook(const FrameworkInfo&, const ExecutorInfo&);
#endif
#if MINOR >= 8
  static void masterLaunchTaskResourceDecorator(const TaskInfo&, const Resources&);
#endif
};
#ifndef NO_STRINGS
void HookManager::initialize(const std::string&) {}
#endif
#ifndef NO_REMOVE
void HookManager::slaveRemoveExecutorHook(const FrameworkInfo&, const ExecutorInfo&) {}
#endif
#if MINOR >= 8
void HookManager::masterLaunchTaskResourceDecorator(const TaskInfo&, const Resources&) {}
#endif
}}
using namespace mesos;

struct Module {
  const char *api, *version, *kind, *name, *email, *description;
  bool (*compatible)();
  Hook* (*create)(const Parameters&);
};

std::string field(int n, const std::string& s) {
  std::string out(1, char(n << 3 | 2));
  size_t size = s.size();
  for (; size > 0x7f; size >>= 7) out += char((size & 0x7f) | 0x80);
  return out + char(size) + s;
}
void ok(const Try<Nothing>& t) { CHECK(t.data.state == 0 && t.error.state == 1); }
template <typename T> void none(const Result<T>& r) {
  CHECK(r.data.data.state == 0 && r.data.data.t.state == 1 && r.data.error.state == 1);
}

int main(int argc, char** argv) {
  CHECK(argc >= 3 && argc % 2 == 1);
  for (const char* kind : {"Allocator", "Anonymous", "Authenticatee", "Hook", "Isolator", "QoSController"})
    modules::ModuleManager::kindToVersion[kind] = argv[2];
  void* library = dlopen(argv[1], RTLD_NOW);
  if (!library) { puts(dlerror()); return 1; }
  auto m = (Module*) dlsym(library, "org_apache_mesos_ComposePodCleanupHook");
  CHECK(m && !strcmp(m->api, "2") && !strcmp(m->kind, "Hook") && m->name && m->email && m->description);
  if (strcmp(m->version, argv[2])) return 3;
  if (m->compatible && !m->compatible()) return 4;
  std::string wire;
  for (int i = 3; i < argc; i += 2) wire += field(1, field(1, argv[i]) + field(2, argv[i + 1]));
  Parameters parameters(wire);
  Hook* hook = m->create(parameters);
  if (!hook) return 5;
  FrameworkInfo framework(field(3, field(1, "fw-1")));
  ExecutorInfo executor(field(1, field(1, "pod-1")) + field(8, field(1, "fw-1")));
  TaskInfo task; SlaveInfo slave; FrameworkID id; ContainerID container; TaskStatus status; Option<TaskInfo> noTask;
  Option<std::map<std::string, std::string>> env;
  const std::string s = "a string that is not short";
  for (int i = 0; i < 1000; i++) {
    none(hook->masterLaunchTaskLabelDecorator(task, framework, slave));
#if MINOR >= 8
    none(hook->masterLaunchTaskResourceDecorator(task, Resources()));
#endif
    none(hook->slaveRunTaskLabelDecorator(task, executor, framework, slave));
    ok(hook->masterSlaveLostHook(slave));
    none(hook->slaveExecutorEnvironmentDecorator(executor));
    {
      auto future = hook->prepare(noTask, executor, s, s, s, env);
      auto copy = future;
      CHECK(!copy.data->lock.test_and_set());
      CHECK(copy.data->state == 1 && !copy.data->discard && !copy.data->associated);
      const auto& result = copy.data->result.data;
      CHECK(result.data.state == 0 && result.error.state == 1 && result.data.t.state == 0 && result.data.t.t.state == 1);
      for (auto& list : copy.data->callbacks) CHECK(list.empty());
      copy.data->lock.clear();
    }
#if MINOR < 2
    ok(hook->slavePreLaunchDockerHook(ContainerInfo(), CommandInfo(), noTask, executor, s, s, s, Option<Resources>(), env));
#endif
    ok(hook->slavePostFetchHook(container, s));
    ok(hook->slaveRemoveExecutorHook(framework, executor));
    none(hook->slaveTaskStatusDecorator(id, status));
    none(hook->slaveResourcesDecorator(slave));
    none(hook->slaveAttributesDecorator(slave));
  }
  puts("stand-in: all methods ok");
}
