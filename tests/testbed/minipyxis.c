/* A stand-in for NVIDIA Pyxis: the --container-* options of srun and sbatch, as a SPANK plugin.
 *
 * The task gets a mount namespace of its own with an overlay of the image's root, the bind mounts
 * that were asked for, and a chroot. An image is a folder below `images`, `/ : + # @` in its name
 * being `_`; `host`, a regular file (a squash file of the enroot stand-in) or, with fallback=host, any
 * other name is this machine's own root. Like Pyxis it refuses an option that is given twice with
 * different values, and variables that the image sets win over the job's
 * unless --container-env names them. The image sets them in its file /etc/minipyxis.env.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
SPANK_PLUGIN(minipyxis, 1);

static char *image, *mounts, *workdir, *environment;
static char images[PATH_MAX] = "/var/lib/minipyxis";
static int fallback_host;

#define FAIL(...) do { slurm_error("minipyxis: " __VA_ARGS__); return -1; } while (0)

static int once(char **value, const char *given, const char *name) {
  if (!given) given = "";
  if (*value && strcmp(*value, given)) FAIL("--container-%s specified multiple times", name);
  if (!*value) *value = strdup(given);
  return 0;
}
static int on_image(int val, const char *arg, int remote) { return once(&image, arg, "image"); }
static int on_mounts(int val, const char *arg, int remote) { return once(&mounts, arg, "mounts"); }
static int on_workdir(int val, const char *arg, int remote) { return once(&workdir, arg, "workdir"); }
static int on_environment(int val, const char *arg, int remote) { return once(&environment, arg, "env"); }

static struct spank_option options[] = {
  {"container-image", "IMAGE", "image to use", 1, 0, on_image},
  {"container-mounts", "SRC:DST[:FLAGS],...", "bind mounts", 1, 0, on_mounts},
  {"container-workdir", "PATH", "working directory in the container", 1, 0, on_workdir},
  {"container-env", "NAMES", "variables that win over the image's", 1, 0, on_environment},
  SPANK_OPTIONS_TABLE_END};

int slurm_spank_init(spank_t spank, int count, char **args) {
  for (int i = 0; i < count; i++) {
    if (!strncmp(args[i], "images=", 7)) snprintf(images, sizeof images, "%s", args[i] + 7);
    if (!strcmp(args[i], "fallback=host")) fallback_host = 1;
  }
  for (int i = 0; options[i].name; i++)
    if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS) return -1;
  return 0;
}

/* Make a folder, or an empty file, and whatever is above it. */
static void make_path(const char *path, int folder) {
  char part[PATH_MAX];
  snprintf(part, sizeof part, "%s", path);
  for (char *c = part + 1; *c; c++)
    if (*c == '/') { *c = 0; mkdir(part, 0755); *c = '/'; }
  if (folder) mkdir(part, 0755);
  else { int fd = open(part, O_CREAT | O_WRONLY | O_CLOEXEC, 0644); if (fd >= 0) close(fd); }
}

static int named(const char *names, const char *name) {
  size_t length = strlen(name);
  for (const char *c = names; c && *c; c = strchr(c, ',') ? strchr(c, ',') + 1 : NULL)
    if (!strncmp(c, name, length) && (c[length] == ',' || !c[length])) return 1;
  return 0;
}

/* What the image sets, NAME=VALUE lines, but for the names that the job insists on. */
static void image_environment(spank_t spank) {
  char line[4096], now[4096];
  FILE *file = fopen("/mnt/r/etc/minipyxis.env", "re");
  while (file && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    char *value = strchr(line, '=');
    if (!value) continue;
    *value++ = 0;
    int is_set = spank_getenv(spank, line, now, sizeof now) == ESPANK_SUCCESS;
    if (!(is_set && named(environment, line))) spank_setenv(spank, line, value, 1);
  }
  if (file) fclose(file);
}

int slurm_spank_task_init_privileged(spank_t spank, int count, char **args) {
  if (!spank_remote(spank) || !image) return 0;
  char name[PATH_MAX], root[2 * PATH_MAX], target[2 * PATH_MAX], overlay[4 * PATH_MAX];
  struct stat found;
  snprintf(name, sizeof name, "%s", image);
  snprintf(root, sizeof root, "%s", image);
  if (image[0] != '/') {
    for (char *c = name; *c; c++) if (strchr("/:+#@", *c)) *c = '_';
    snprintf(root, sizeof root, "%s/%s", images, name);
  }
  int there = !stat(root, &found);
  if (!strcmp(image, "host") || (there && S_ISREG(found.st_mode)) || (!there && fallback_host && image[0] != '/'))
    strcpy(root, "/");
  if (stat(root, &found) || !S_ISDIR(found.st_mode)) FAIL("no such image: %s (looked for %s)", image, root);
  if (unshare(CLONE_NEWNS)) FAIL("unshare: %m");
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) FAIL("make-private: %m");
  if (mount("minipyxis", "/mnt", "tmpfs", 0, "mode=755")) FAIL("tmpfs: %m");
  mkdir("/mnt/u", 0755); mkdir("/mnt/w", 0755); mkdir("/mnt/r", 0755);
  snprintf(overlay, sizeof overlay, "lowerdir=%s,upperdir=/mnt/u,workdir=/mnt/w", root);
  if (mount("overlay", "/mnt/r", "overlay", 0, overlay)) FAIL("overlay: %m");
  const char *system[] = {"/proc", "/dev", "/sys", NULL};
  for (int i = 0; system[i]; i++) {
    snprintf(target, sizeof target, "/mnt/r%s", system[i]);
    make_path(target, 1);
    if (mount(system[i], target, NULL, MS_BIND | MS_REC, NULL)) FAIL("bind %s: %m", system[i]);
  }
  if (mounts && *mounts) {
    char *save = NULL, *copy = strdup(mounts);
    for (char *one = strtok_r(copy, ",", &save); one; one = strtok_r(NULL, ",", &save)) {
      char *rest = NULL, *from = strtok_r(one, ":", &rest), *to = strtok_r(NULL, ":", &rest);
      char *flags = strtok_r(NULL, ":", &rest);
      if (!to) to = from;
      if (stat(from, &found)) FAIL("mount source %s: %m", from);
      snprintf(target, sizeof target, "/mnt/r%s", to);
      make_path(target, S_ISDIR(found.st_mode));
      if (mount(from, target, NULL, MS_BIND | MS_REC, NULL)) FAIL("bind %s on %s: %m", from, to);
      if (flags && strstr(flags, "ro") && mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL))
        FAIL("read-only %s: %m", to);
    }
  }
  image_environment(spank);
  if (chroot("/mnt/r") || chdir("/")) FAIL("chroot: %m");
  return 0;
}

int slurm_spank_task_init(spank_t spank, int count, char **args) {
  if (!spank_remote(spank) || !image) return 0;
  const char *folder = workdir && *workdir ? workdir : "/";
  if (chdir(folder)) FAIL("couldn't chdir to container cwd: %s: %m", folder);
  return 0;
}
