/* A PKCS#11 module between a helper and SoftHSM: it passes everything on, and does
 * besides what $PROBITY_TEST_MODULE says. Each login is a byte in $PROBITY_TEST_LOGINS. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pkcs11go.h"

static CK_FUNCTION_LIST list;
static CK_FUNCTION_LIST_PTR real;

static int is(const char *what)
{
	const char *how = getenv("PROBITY_TEST_MODULE");

	return how && !strcmp(how, what);
}

static CK_RV initialize(CK_VOID_PTR args)
{
	char c;

	if (is("prints")) {
		puts("module 1.0 (debug build)");
		fflush(stdout);
	}
	if (is("asks") && read(STDIN_FILENO, &c, 1) != 0)
		return CKR_GENERAL_ERROR;
	return real->C_Initialize(args);
}

static CK_RV token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info)
{
	CK_RV rv = real->C_GetTokenInfo(slot, info);

	if (is("final try"))
		info->flags |= CKF_USER_PIN_FINAL_TRY;
	if (is("locked"))
		info->flags |= CKF_USER_PIN_LOCKED;
	return rv;
}

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE who, CK_UTF8CHAR_PTR pin, CK_ULONG len)
{
	const char *path = getenv("PROBITY_TEST_LOGINS");
	int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;

	if (fd >= 0) {
		if (write(fd, ".", 1) != 1)
			return CKR_GENERAL_ERROR;
		close(fd);
	}
	if (is("locks"))
		return CKR_PIN_LOCKED;
	return real->C_Login(session, who, pin, len);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out)
{
	CK_C_GetFunctionList get;
	void *module = dlopen(SOFTHSM, RTLD_NOW | RTLD_LOCAL);
	CK_RV rv;

	if (!module)
		return CKR_GENERAL_ERROR;
	get = (CK_C_GetFunctionList)dlsym(module, "C_GetFunctionList");
	rv = get(&real);
	if (rv != CKR_OK)
		return rv;
	list = *real;
	list.C_Initialize = initialize;
	list.C_GetTokenInfo = token_info;
	list.C_Login = login;
	*out = &list;
	return CKR_OK;
}
